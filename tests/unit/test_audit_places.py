"""Which place a file of a node is."""

from __future__ import annotations

import pytest

from workload.audit.places import classify


@pytest.mark.parametrize(
    ("path", "where"),
    [
        ("./base/5/16384", "heap"),
        ("./base/5/16384.1", "heap"),
        ("./base/5/16384_fsm", "heap"),
        ("./base/5/26190", "heap"),
        ("./base/2619/16384", "heap"),
        ("./global/1260", "heap"),
        ("./global/pg_control", "heap"),
        ("./pg_tblspc/16400/PG_17_202406281/5/16401", "heap"),
        ("./.incoming/base/5/16384", "heap"),
        ("./pg_xact/0000", "heap"),
        ("./pg_twophase/00000000000002F1", "heap"),
        ("./postgresql.auto.conf", "heap"),
        ("./something_new/in_a_later_version", "heap"),
        ("./pg_wal/000000010000000000000003", "wal"),
        ("./pg_wal/archive_status/000000010000000000000003.done", "wal"),
        ("./pg_replslot/us/xid-742-lsn-0-3000000.spill", "wal"),
        ("./pg_logical/snapshots/0-1540C28.snap", "wal"),
        ("./base/5/2619", "statistics"),
        ("./base/5/2619.2", "statistics"),
        ("./base/5/2619_vm", "statistics"),
        ("./base/1/2840", "statistics"),
        ("./base/5/3433", "statistics"),
        ("./pg_tblspc/16400/PG_17_202406281/5/2619", "statistics"),
        ("./pg_stat/pgstat.stat", "statistics"),
        ("./pg_stat_tmp/pgss_query_texts.stat", "statistics"),
        ("./log/postgresql-2026-01-01.log", "log"),
        ("./rewind.log", "log"),
        ("/work/a lab/nodes/eu/postgresql.log", "log"),
        ("./base/pgsql_tmp/pgsql_tmp812.0", "temp"),
        ("./base/pgsql_tmp/pgsql_tmp812.0.sharedfileset/0.0", "temp"),
        ("./pg_tblspc/16400/PG_17_202406281/pgsql_tmp/pgsql_tmp9.1", "temp"),
        ("./base/5/t3_16390", "temp"),
        ("./base/5/t3_16390_fsm", "temp"),
        ("./base/5/t3_16390.1", "temp"),
    ],
)
def test_place_of_a_file(path: str, where: str) -> None:
    assert classify(path) == where


def test_statistics_that_were_written_anew_are_known_by_their_path() -> None:
    assert classify("./base/5/16500") == "heap"
    assert classify("./base/5/16500", {"base/5/16500"}) == "statistics"
    assert classify("./base/5/16500.1", {"base/5/16500"}) == "statistics"
    assert classify("./base/4/16500", {"base/5/16500"}) == "heap"
