"""The report files, $LAB_HOME/reports/*.json: read, replace rows, write.

In the core, since several rooms write one: measurements of the WAN, first copies, audits, figures.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workload.errors import LabError
from workload.lab import Lab, write_atomically


@dataclass(frozen=True)
class Report:
    """A report file; keys are those that each row must have."""

    keys: frozenset[str]
    #: What writes the file again, once a damaged one is removed.
    remedy: str


def _report(keys: str, remedy: str) -> Report:
    return Report(frozenset(keys.split()), remedy)


#: What each holds: a list of rows, but replicas (a row for each node) and partition (one row).
REPORTS: Mapping[str, Report] = {
    "experience": _report(
        "phase region operation requests failures p50_ms p95_ms p99_ms stale_reads",
        "make traffic HEADLESS=1 measures the present phase again",
    ),
    "wan": _report(
        "phase from node configured_ms measured_ms serves",
        "make traffic HEADLESS=1 measures the present phase again",
    ),
    "steps": _report(
        "phase region requests failures buy_p50_ms buy_slowest_ms look_p50_ms look_slowest_ms",
        "make demo in a new lab measures the steps again",
    ),
    "residency": _report("phase verdict nodes", "make audit writes it again"),
    "failover": _report("from to", "make failover writes the next one"),
    "cutover": _report(
        "region rows rtt_ms write_pause_ms others_pause_ms acknowledged failed lost",
        "its figures of past cutovers are lost",
    ),
    "partition": _report(
        "customers purchases seconds write_pause_ms", "its figures of the partitioning are lost"
    ),
    "replicas": _report("rows seconds rows_per_s", "its figures of first copies are lost"),
    "bench": _report("name value unit", "make bench writes it again"),
}


def path_of(lab: Lab, name: str) -> Path:
    """Return where a report file is."""
    return lab.home / "reports" / f"{name}.json"


def load(lab: Lab, name: str) -> list[dict[str, Any]]:
    """Return a report's rows, [] where there is no file; raises LabError for a damaged one."""
    rows: list[dict[str, Any]] = _read(lab, name, list)
    for row in rows:
        _check(lab, name, row)
    return rows


def load_one(lab: Lab, name: str) -> dict[str, Any]:
    """Return the row of a report that has a single one, {} where there is no file."""
    row: dict[str, Any] = _read(lab, name, dict)
    if row:
        _check(lab, name, row)
    return row


def load_by_name(lab: Lab, name: str) -> dict[str, dict[str, Any]]:
    """Return the rows of a report that has one for each name, {} where there is no file."""
    rows: dict[str, dict[str, Any]] = _read(lab, name, dict)
    for row in rows.values():
        _check(lab, name, row)
    return rows


def save(lab: Lab, name: str, content: Any) -> None:
    """Write a report whole."""
    write_atomically(path_of(lab, name), json.dumps(content, indent=1) + "\n")


def replace(
    lab: Lab, name: str, key: str, rows: Iterable[Mapping[str, Any]], *values: Any
) -> list[dict[str, Any]]:
    """Replace the rows whose key has a new row's value, or one of values; return all rows."""
    new = [dict(row) for row in rows]
    replaced = {*values, *(row[key] for row in new)}
    content = [row for row in load(lab, name) if row[key] not in replaced] + new
    save(lab, name, content)
    return content


def _read(lab: Lab, name: str, kind: type) -> Any:
    path = path_of(lab, name)
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return kind()
    except (OSError, ValueError) as error:
        raise _damaged(lab, name, str(error)) from None
    if not isinstance(content, kind):
        raise _damaged(lab, name, f"not a {kind.__name__} at its top")
    return content


def _check(lab: Lab, name: str, row: Any) -> None:
    if not isinstance(row, dict):
        raise _damaged(lab, name, f"{json.dumps(row)[:40]} is not an object")
    missing = REPORTS[name].keys - row.keys()
    if missing:
        raise _damaged(lab, name, f"a row has no {', '.join(sorted(missing))}")


def _damaged(lab: Lab, name: str, why: str) -> LabError:
    return LabError(f"{path_of(lab, name)} is damaged ({why}): remove it; {REPORTS[name].remedy}")
