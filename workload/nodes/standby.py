"""Streaming standbys, failover and rejoin, the same in both runtimes.

The primary waits for its standby before it acknowledges (synchronous_commit on, FIRST 1), so a
promoted standby has every acknowledged write. What names the standby does not travel with a base
backup: each of these steps sets it for the roles that hold after it.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from workload.errors import LabError
from workload.nodes.embedded import quoted
from workload.nodes.server import NodeServer
from workload.processes import poll, reached
from workload.sql import Login, connect

#: The role that standbys stream as. The WAL holds everything, so it is nobody else's.
REPLICATION_ROLE = "replication"

# Input: a line of a password file (libpq's PGPASSFILE), then the settings by which the standby
# follows its primary. The file loses its name before it has a content: the password is in no
# command line, in no environment, and a killed run leaves nothing behind.
CREDENTIALS = r"""
umask 077
passfile=$(mktemp)
exec 9<>"$passfile"
rm "$passfile"
IFS= read -r line
printf '%s\n' "$line" >&9
export PGPASSFILE=/dev/fd/9
follow=$(cat)
"""

# PGDATA cannot be renamed where it is a volume's mount point. So the backup is made inside it, and
# PG_VERSION, which marks a whole cluster, moves last.
SEED = r"""
mkdir -p "$PGDATA"
cd "$PGDATA"
find . -mindepth 1 -delete
chmod 0700 .
pg_basebackup --pgdata=.incoming --wal-method=stream --slot="$SLOT" --checkpoint=fast \
  --dbname="$SOURCE" --no-password --no-sync
cd .incoming
printf '%s\n' "$follow" >>postgresql.auto.conf
touch standby.signal
rm -f postmaster.pid postmaster.opts
find . -mindepth 1 -maxdepth 1 ! -name PG_VERSION -exec mv {} .. \;
mv PG_VERSION ..
cd ..
rmdir .incoming
sync -f .
"""

# A fenced node that is started is a standby without a primary: it can be read and takes no write.
# Without a cluster there is nothing to fence.
FENCE = r"""
[ -e "$PGDATA/PG_VERSION" ] || exit 0
touch "$PGDATA/standby.signal"
printf '%s\n' "synchronous_standby_names = 'fenced'" >>"$PGDATA/postgresql.auto.conf"
"""

# pg_rewind ends the crash recovery of a killed server first, and does that as a primary: for this
# one second the fence is the setting above, with which nothing could be acknowledged. On standard
# output is the reason where it fails, nothing where it does not.
#
# A node that follows the primary already, since a run was killed after this, is left as it is: its
# recovery, ended as a primary, would write a record of its own into the primary's timeline, which
# no rewind undoes, and the node could never stream again.
REWIND = r"""
state=$(LC_ALL=C pg_controldata "$PGDATA" | sed -n 's/^Database cluster state: *//p')
if [ "$(tail -n 3 "$PGDATA/postgresql.auto.conf")" = "$follow" ] &&
  { [ "$state" = 'in archive recovery' ] || [ "$state" = 'shut down in recovery' ]; }; then
  touch "$PGDATA/standby.signal"
  exit 0
fi
rm -f "$PGDATA/standby.signal" "$PGDATA/postmaster.pid"
log=$PGDATA/rewind.log
if pg_rewind --target-pgdata="$PGDATA" --source-server="$SOURCE" >"$log" 2>&1; then
  printf '%s\n' "$follow" >>"$PGDATA/postgresql.auto.conf"
  touch "$PGDATA/standby.signal"
else
  touch "$PGDATA/standby.signal"
  grep -m 1 -E 'error:|fatal:|FATAL:|PANIC:' "$log" || tail -n 1 "$log"
fi
"""


@dataclass(frozen=True)
class Member:
    """A node as a member of a primary and standby pair."""

    name: str
    server: NodeServer
    login: Login

    @property
    def slot(self) -> str:
        """The name of its slot on the primary, and its application_name."""
        return self.name.replace("-", "_")


def copy_script(
    primary: Member, standby: Member, password: str, script: str
) -> tuple[str, dict[str, str], bytes]:
    """Return (script, environment, input) that make or mend a standby's data directory.

    The password is in the input alone: in a password file's line, and in the settings by which the
    standby follows its primary.
    """
    host, port = primary.server.address_for_peers()
    source = psycopg.conninfo.make_conninfo(
        host=host, port=port, user=REPLICATION_ROLE, connect_timeout=5
    )
    conninfo = psycopg.conninfo.make_conninfo(
        source, password=password, application_name=standby.slot
    )
    escaped = password.replace("\\", "\\\\").replace(":", "\\:")
    lines = (
        f"*:*:*:{REPLICATION_ROLE}:{escaped}",
        f"primary_conninfo = {quoted(conninfo)}",
        f"primary_slot_name = '{standby.slot}'",
        "synchronous_standby_names = ''",
    )
    environ = {"SOURCE": f"{source} dbname=postgres", "SLOT": standby.slot}
    return CREDENTIALS + script, environ, "".join(f"{line}\n" for line in lines).encode()


def seed(primary: Member, standby: Member, password: str) -> bool:
    """Make a standby's data directory from a base backup; return whether it was made.

    Raises LabError where the primary takes no login or the backup fails. A killed run leaves a
    directory without PG_VERSION, which is made again.
    """
    if standby.server.has_data():
        return False
    with connect(primary.login) as connection:
        ensure_slot(connection, standby.slot)
    reached("standby.slotted")
    standby.server.run(*copy_script(primary, standby, password, SEED))
    reached("standby.seeded")
    return True


def ensure_slot(connection: psycopg.Connection[Any], name: str) -> None:
    """Ensure a physical slot, which keeps the WAL that a standby misses while it is away."""
    connection.execute(
        "SELECT pg_create_physical_replication_slot(%(name)s, true) WHERE NOT EXISTS"
        " (SELECT FROM pg_replication_slots WHERE slot_name = %(name)s)",
        {"name": name},
    )
    connection.commit()


def make_synchronous(primary: Member, standby: Member, timeout_s: float) -> bool:
    """Wait until a standby streams, then make it synchronous; return whether that changed anything.

    Raises LabError with the standby's state where it does not stream in time.
    """
    with connect(primary.login) as connection:
        connection.autocommit = True

        def is_streaming() -> bool:
            row = connection.execute(
                "SELECT state FROM pg_stat_replication WHERE application_name = %s",
                (standby.slot,),
            ).fetchone()
            return row is not None and row[0] == "streaming"

        poll(is_streaming, timeout_s, f"{standby.name} does not stream from {primary.name}")
        reached("standby.streaming")
        return set_synchronous(connection, f'FIRST 1 ("{standby.slot}")')


def set_synchronous(connection: psycopg.Connection[Any], names: str) -> bool:
    """Set synchronous_standby_names and wait until it is in force; return whether it changed."""
    connection.autocommit = True

    def in_force() -> bool:
        row = connection.execute("SHOW synchronous_standby_names").fetchone()
        return row is not None and row[0] == names

    if in_force():
        return False
    connection.execute(
        sql.SQL("ALTER SYSTEM SET synchronous_standby_names = {}").format(sql.Literal(names))
    )
    connection.execute("SELECT pg_reload_conf()")
    poll(in_force, 10, "synchronous_standby_names is not in force")
    return True


def is_standby(login: Login) -> bool:
    """Tell whether a node is in recovery; raises LabError where it takes no login."""
    with connect(login) as connection:
        row = connection.execute("SELECT pg_is_in_recovery()").fetchone()
        return bool(row and row[0])


def promote(primary: Member, standby: Member) -> dict[str, Any]:
    """Fence a primary, and make its standby the primary; return figures for the report.

    In this order: only a standby that answers and is in recovery is promoted, only after every
    process of the old primary is gone and its data directory can no longer start as a primary.
    Interrupted anywhere, it can be called again. Returns fence_ms, promote_ms and fenced_at
    (seconds since the epoch). Raises LabError where the standby cannot be promoted; the primary is
    untouched then.
    """
    try:
        follows = is_standby(standby.login)
    except LabError as error:
        raise LabError(f"{standby.name} cannot take over: {error}") from None
    started = time.monotonic()
    primary.server.kill()
    if primary.server.is_running():
        raise LabError(f"{primary.name} cannot be fenced: a process of it does not end")
    primary.server.shell(FENCE)
    reached("failover.fenced")
    fenced, fenced_at = time.monotonic(), time.time()
    with connect(standby.login) as connection:
        connection.autocommit = True
        if follows:
            row = connection.execute("SELECT pg_promote(true, 30)").fetchone()
            if not (row and row[0]):
                raise LabError(f"{standby.name} was not promoted within 30 s: see its log")
        reached("failover.promoted")
        set_synchronous(connection, "")
        ensure_slot(connection, primary.slot)
    return {
        "fence_ms": (fenced - started) * 1e3,
        "promote_ms": (time.monotonic() - fenced) * 1e3,
        "fenced_at": fenced_at,
    }


def copy_back(primary: Member, old: Member, password: str) -> str:
    """Make a lost node's data directory the primary's standby; return how, for people to read.

    "rewound", or "copied anew because ..." with pg_rewind's reason. The node takes no write on the
    way: its data directory is rewound, or replaced where that fails, before it starts, and it
    starts as a standby.
    """
    old.server.kill()
    with connect(primary.login) as connection:
        ensure_slot(connection, old.slot)
        # Up to PostgreSQL 15 pg_rewind reads the new timeline from the last checkpoint.
        connection.execute("CHECKPOINT")
    reached("rejoin.slotted")
    how = "copied anew because its data directory is empty"
    if old.server.has_data():
        output = old.server.run(*copy_script(primary, old, password, REWIND))
        reason = output.decode(errors="replace").strip()
        how = f"copied anew because {reason}" if reason else "rewound"
    if how != "rewound":
        old.server.shell('rm -f "$PGDATA/PG_VERSION"')
        seed(primary, old, password)
    reached("rejoin.rewound")
    return how


def resume(primary: Member, old: Member, timeout_s: float) -> None:
    """Wait until a node that was brought back streams, and make it synchronous again.

    Raises LabError where it does not stream in time.
    """
    reached("rejoin.started")
    make_synchronous(primary, old, timeout_s)
