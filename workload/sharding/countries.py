"""Countries that change their region: only where nobody would be left behind."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg import sql

from workload.errors import LabError
from workload.sharding.leaves import own_tables
from workload.sql import connect
from workload.topology import Topology


def check(topology: Topology, password: str, regions: Mapping[str, Sequence[str]]) -> None:
    """Raise LabError where a country is taken from a region that has customers in it.

    regions: {name: countries} as they are to be.
    """
    home = {country: name for name, countries in regions.items() for country in countries}
    for region in topology.regions:
        leaving = [country for country in region.countries if home.get(country) != region.name]
        if not leaving:
            continue
        with connect(topology.operator_login(region.node, password), 5) as connection:
            for table in own_tables(connection, "customer"):
                row: Any = connection.execute(
                    sql.SQL(
                        "SELECT count(*), min(country::text) FROM {} WHERE country::text = ANY(%s)"
                    ).format(table),
                    (leaving,),
                ).fetchone()
                if row[0]:
                    raise LabError(
                        f"lab_regions takes '{row[1]}' from region {region.name}, which has"
                        f" {row[0]:,} customers in {', '.join(leaving)}: move them first (make"
                        " move), or leave it there"
                    )
