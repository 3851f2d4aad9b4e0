"""The customers' statements: each an ordinary one, since each is a round trip."""

from __future__ import annotations

from dataclasses import dataclass

#: A read: how many purchases one has, their sum, and whether one's last is among them.
_READ = (
    "SELECT count(*), coalesce(sum(amount), 0), coalesce(bool_or(id = %s), false)"
    " FROM {purchase} WHERE customer_id = %s"
)


@dataclass(frozen=True)
class Statements:
    """The statements of one phase; has_country tells whether each takes the customer's country."""

    #: id, email
    sign_up: str
    #: id, customer_id, amount
    buy: str
    #: id of one's last purchase, customer_id
    read: str
    has_country: bool


#: As the source document has them. They go on in every phase.
OLD = Statements(
    sign_up="INSERT INTO customer (id, email) VALUES (%s, %s)",
    buy="INSERT INTO purchase (id, customer_id, amount) VALUES (%s, %s, %s)",
    read=_READ.format(purchase="purchase"),
    has_country=False,
)
#: Where customers have a country and their purchases do not.
SIGN_UP_WITH_COUNTRY = "INSERT INTO customer (id, email, country) VALUES (%s, %s, %s)"
#: Where a customer is at home, by id alone; in phase after.
FIND = "SELECT country, region FROM global.find_customer(%s)"


def sharded(schema: str) -> Statements:
    """Return the statements on the partitioned tables, reading there or in a region's own leaves.

    With the country in it, a statement goes to one partition; without, to all. PostgreSQL plans
    those on the partitioned table anew each time, but not an INSERT, which it only has to route: by
    a leaf's own name it would check the bound instead, and that takes longer.
    """
    return Statements(
        sign_up="INSERT INTO global.customer (id, email, country) VALUES (%s, %s, %s)",
        buy="INSERT INTO global.purchase (id, customer_id, amount, country)"
        " VALUES (%s, %s, %s, %s)",
        read=_READ.format(purchase=f'"{schema}".purchase') + " AND country = %s",
        has_country=True,
    )


def statements_for(tables: str, region: str, is_home: bool) -> Statements:
    """Return a region's statements; tables is the topology's: public, global or home."""
    if tables == "public":
        return OLD
    return sharded(region if is_home and tables == "home" else "global")
