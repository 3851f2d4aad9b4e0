"""Where on a node data can be, and which of the node's files is which place."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

Where = Literal["logical", "heap", "wal", "statistics", "log", "temp"]

#: The places that are files; "logical" is what SQL shows.
FILES: tuple[Where, ...] = ("heap", "wal", "statistics", "log", "temp")
WHERES: tuple[Where, ...] = ("logical", *FILES)

#: pg_statistic and pg_statistic_ext_data, with their toast tables and indexes: the names of their
#: files in every database, until a VACUUM FULL gives them others.
STATISTICS_FILES = frozenset({"2619", "2696", "2840", "2841", "3429", "3430", "3431", "3433"})

#: A second segment (".1") and a fork ("_fsm") belong to their relation.
RELATION = re.compile(r"(?:base/\d+|global|pg_tblspc/\d+/[^/]+/\d+)/(\d+)(?:_[a-z]+)?(?:\.\d+)?")
TEMPORARY = re.compile(r"(?:^|/)(?:pgsql_tmp|t\d+_\d+(?:_[a-z]+)?(?:\.\d+)?$)")
BY_FOLDER: dict[str, Where] = {
    "pg_wal": "wal",
    "pg_replslot": "wal",
    "pg_logical": "wal",
    "pg_stat": "statistics",
    "pg_stat_tmp": "statistics",
    "log": "log",
    "pg_log": "log",
}


@dataclass(frozen=True)
class Place:
    """Where something of a region is on a node: a column, or a file below the data directory."""

    region: str
    where: Where
    hits: int
    database: str = ""
    schema: str = ""
    table: str = ""
    #: "" for rows, which are told by their country.
    column: str = ""
    file: str = ""
    #: Of a log, the line of the first hit.
    line: int = 0
    #: Of a file, the first byte of the first hit.
    offset: int = 0
    #: Of a log, what kind of line: LOG, FATAL, STATEMENT.
    severity: str = ""
    #: Customers of the sample, and not canaries.
    is_sample: bool = False

    def entry(self) -> dict[str, str | int]:
        """Return the place as residency.json has it, without what is not known of it."""
        return {name: value for name, value in vars(self).items() if value not in ("", 0, False)}


def classify(path: str, statistics: Collection[str] = ()) -> Where:
    """Return the place that a file is.

    path: relative to the data directory, or absolute for a file beside it, which is the server's
    log; statistics: paths of statistics' files as pg_relation_filepath() gives them. Every other
    file is heap: tables and indexes, and what a later version may add.
    """
    if path.startswith("/"):
        return "log"
    path = path.removeprefix("./")
    folder, _, rest = path.partition("/")
    if rest and folder in BY_FOLDER:
        return BY_FOLDER[folder]
    if not rest and path.endswith(".log"):
        return "log"  # pg_rewind's own.
    if TEMPORARY.search(path):
        return "temp"
    if matched := RELATION.fullmatch(path):
        relation = path[: matched.end(1)]
        # No relation of a user has a number this low.
        if matched[1] in STATISTICS_FILES or relation in statistics:
            return "statistics"
    return "heap"
