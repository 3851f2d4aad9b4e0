"""A person's server settings: merged over the lab's, or refused by name with the reason."""

from __future__ import annotations

import pytest

from workload.nodes.settings import SETTINGS, arguments, merged, problems


def of(**settings: object) -> list[str]:
    return problems([{"inventory_hostname": "eu", "node_settings": settings}])


def test_own_settings_come_over_the_labs() -> None:
    assert merged({}) == {name: str(value) for name, value in SETTINGS.items()}
    changed = merged({"Work-Mem": "5MB", "max_connections": 50, "jit": False})
    assert changed["work_mem"] == "5MB"
    assert changed["max_connections"] == "50"
    assert changed["jit"] == "off"
    assert changed["wal_level"] == "logical"
    assert arguments({"work_mem": "5MB"})[-2:] == ["-c", "work_mem=5MB"]


@pytest.mark.parametrize("name", SETTINGS)
def test_the_labs_own_are_not_refused(name: str) -> None:
    assert of(**{name: SETTINGS[name]}) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("wal_level", "replica"),
        ("WAL-level", "minimal"),
        ("max_replication_slots", 4),
        ("max_prepared_transactions", 0),
        ("ssl", True),
        ("hba_file", "/etc/pg_hba.conf"),
        ("port", 5432),
        ("listen_addresses", "*"),
        ("session_preload_libraries", "auto_explain"),
        ("wal_recycle", True),
        ("log_min_messages", "warning"),
        ("log_parameter_max_length", -1),
        ("logging_collector", True),
        ("synchronous_commit", False),
        ("synchronous_standby_names", ""),
        ("session_replication_role", "replica"),
        ("include", "more.conf"),
        ("work_mem = 1\nport", 1),
    ],
)
def test_what_the_lab_rests_on_is_refused_by_name(name: str, value: object) -> None:
    (line,) = of(**{name: value})
    assert "node 'eu'" in line
    assert name.lower().replace("-", "_") in line


def test_what_is_a_persons_own_is_not_refused() -> None:
    allowed = {
        "log_statement": "all",
        "max_connections": 77,
        "shared_preload_libraries": "pg_stat_statements",
        "pg_stat_statements.track": "all",
        "max_replication_slots": 40,
        "wal_recycle": False,
    }
    assert of(**allowed) == []
    assert problems([{"inventory_hostname": "eu"}]) == []


def test_no_mapping() -> None:
    (line,) = problems([{"inventory_hostname": "eu", "node_settings": ["log_statement"]}])
    assert "by name" in line
