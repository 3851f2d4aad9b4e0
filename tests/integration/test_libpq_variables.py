"""A person's libpq variables do not reach the lab's connections."""

from __future__ import annotations

import os
import subprocess
import sys

from tests.fixtures.labs import CHECKOUT, LabUnderTest

#: Each alone would break a login, or send it elsewhere.
HOSTILE = {
    "PGSSLMODE": "verify-full",
    "PGOPTIONS": "-c no_such_setting=1",
    "PGHOSTADDR": "192.0.2.1",
    "PGSERVICE": "no-such-service",
    "PGSERVICEFILE": "/nonexistent",
    "PGPASSFILE": "/nonexistent",
    "PGTARGETSESSIONATTRS": "standby",
    "PGREQUIREAUTH": "none",
    "PGCHANNELBINDING": "require",
    "PGPORT": "1",
    "PGDATA": "/nonexistent",
    "PGTZ": "no/such/zone",
}


def test_playbooks_psql_and_status_do_not_heed_them(embedded_lab: LabUnderTest) -> None:
    embedded_lab.play_ok("before", **HOSTILE)
    embedded_lab.play_ok("expand_eu", **HOSTILE)
    done = embedded_lab.workload("psql", "--sql", "SELECT 40 + 2", **HOSTILE)
    assert "42" in done.stdout, done.stderr
    done = embedded_lab.workload("status", **HOSTILE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_package_starts_does_not_have_them() -> None:
    """Locust, relays and servers are children of a process that has imported the package."""
    code = "import os, workload; print([n for n in os.environ if n.startswith('PG')])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=CHECKOUT,
        env={**os.environ, **HOSTILE, "PG_COLOR": "never"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "['PG_COLOR']"
