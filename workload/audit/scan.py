"""Search a node's raw files for canaries and a sample of customers, without trusting SQL.

GNU grep searches, in a script on the node's data directory: the images have it, and the audit
prints its rate. It holds a line in memory, so lines have to be short: in PostgreSQL's own files
they end at zero bytes (-z), which are frequent there, and in logs at line feeds.

The patterns are real customers of other regions too, so they never reach the node's disk: the
script reads them from standard input and keeps them in shared memory while it runs.
"""

from __future__ import annotations

import base64
import itertools
import os
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from workload.audit import places
from workload.audit.canaries import Canary, Kind
from workload.audit.places import Place, Where
from workload.audit.sample import Customer, is_whole
from workload.errors import LabError
from workload.nodes.server import NodeServer

#: Two hits of one marker this close, in bytes, are parts of one copy: compression adds a byte for
#: every eight letters, and a new page of WAL begins with a header of up to 40.
ONE_PLACE = 72

# Its input is the patterns in base64, on one line, and after that the server's log where that is no
# file. Its output is in base64 too, since paths may have any bytes and an engine passes on text
# alone.
#
# The first round reads every file that exists at the beginning, the second one every file that was
# made since: the new file of a table that is rewritten, the next WAL segment. Every grep first
# builds a trie of the patterns, so there is one grep for each processor, not for each file.
SCRIPT = r"""
export LC_ALL=C
cd "$PGDATA"
[ -e PG_VERSION ] || { echo "there is no cluster in $PGDATA" >&2; exit 1; }
work=$(if [ -w /dev/shm ]; then mktemp -d -p /dev/shm; else mktemp -d; fi)
logs=$(mktemp -d)
trap 'rm -rf "$work" "$logs"' EXIT
IFS= read -r patterns
printf %s "$patterns" | base64 -d >"$work/patterns"
log=$LOG
if [ "$log" = - ]; then
  log=$logs/server.log
  cat >"$log"
fi
: >"$work/hits"
: >"$work/lines"
: >"$work/errors"

list() {
  find -L . ${log:+"$log"} -ignore_readdir_race ! -type d -printf '%y %s %p\0' >"$work/$1" \
    2>>"$work/errors" || true
  sed -z -n 's/^f [0-9]* //p' "$work/$1" | sort -z >"$work/$1.names"
}

is_log='^(/|\./(pg_)?log/|\./[^/]*\.log$)'

scan() {
  rm -f "$work"/part.*
  cat >"$work/todo"
  grep -z -E -v "$is_log" "$work/todo" >"$work/binary" || true
  grep -z -E "$is_log" "$work/todo" >"$work/part.logs" || true
  split -t '\0' -n "r/$(nproc)" "$work/binary" "$work/part."
  pids=
  for part in "$work"/part.??; do
    {
      status=0
      xargs -0 -r grep -zaobHZF -f "$work/patterns" -- <"$part" >"$part.hits" 2>"$part.errors" \
        || status=$?
      # 123: one of several greps found nothing, or reported a file that it could not read.
      [ "$status" = 0 ] || [ "$status" = 123 ]
    } &
    pids="$pids $!"
  done
  for pid in $pids; do
    wait "$pid" || { echo "grep or xargs failed" >&2; exit 1; }
  done
  status=0
  xargs -0 -r grep -naobHZF -f "$work/patterns" -- <"$work/part.logs" >"$work/part.lines" \
    2>"$work/part.logs.errors" || status=$?
  [ "$status" = 0 ] || [ "$status" = 123 ] || { echo "grep or xargs failed" >&2; exit 1; }
  tr '\n' '\0' <"$work/part.lines" >>"$work/lines"
  cat "$work"/part.*.hits >>"$work/hits"
  cat "$work"/part.*.errors >>"$work/errors"
}

list before
# The largest first, dealt out in turn.
sort -z -k2,2rn "$work/before" | sed -z -n 's/^f [0-9]* //p' | scan
list after
comm -z -13 "$work/before.names" "$work/after.names" | scan
for name in before after hits lines errors; do
  echo "# $name"
  base64 "$work/$name"
done
"""

# Its input has a line for each part of a file: first byte, bytes, and path in base64.
CONTEXT_SCRIPT = r"""
cd "$PGDATA"
while read -r first count path; do
  { tail -c "+$((first + 1))" -- "$(printf %s "$path" | base64 -d)" | head -c "$count"; } \
    2>/dev/null | base64 -w 0
  echo
done
"""
#: E-mails whose neighbouring bytes are read; a verdict needs no more.
COMPARED = 200
#: Bytes before a hit in a log: enough for the line's prefix.
LINE = 400
SEVERITY = re.compile(rb"\b(LOG|ERROR|FATAL|PANIC|WARNING|NOTICE|DETAIL|HINT|CONTEXT|STATEMENT): ")


@dataclass
class Scan:
    """What a scan of one node has read, and its hits."""

    node: str
    seconds: float = 0.0
    #: Bytes by place.
    read: Counter[Where] = field(default_factory=Counter)
    #: Files that were removed before they were read.
    vanished: int = 0
    #: Places by region; the control's region is "".
    hits: Counter[tuple[str, Where]] = field(default_factory=Counter)
    #: The kinds of each canary's traces, by its marker.
    kinds: dict[str, set[tuple[Where, Kind]]] = field(default_factory=dict)
    #: Customers of the sample that the files have, by region and place.
    sampled: dict[tuple[str, Where], set[Customer]] = field(default_factory=dict)
    #: Where the hits are: a file each, and the first line in a log.
    places: list[Place] = field(default_factory=list)
    #: Nothing keeps the server's log.
    no_log: bool = False


def scan(
    server: NodeServer,
    canaries: Iterable[Canary],
    statistics: Collection[str] = (),
    sample: Iterable[Customer] = (),
) -> Scan:
    """Search all of a node's files, and its server's log, for canaries and a sample of customers.

    statistics: paths of the statistics' files, as pg_relation_filepath() gives them. Raises
    LabError, with node and file, where one cannot be read: an audit that skips a file proves
    nothing.
    """
    known: dict[bytes, tuple[Canary, Kind]] = {}
    customers = {pattern: customer for customer in sample for pattern in customer.patterns()}
    for canary in canaries:
        known.update({pattern: (canary, kind) for pattern, kind in canary.patterns().items()})
    scanned = Scan(server.place.node)
    stdin = base64.b64encode(b"\n".join([*known, *customers]) + b"\n") + b"\n"
    started = time.monotonic()
    file = server.log_file()
    kept_log = server.log_bytes() if file is None else b""
    log = "-" if kept_log else ""
    scanned.no_log = file is None and kept_log is None
    output = server.run(SCRIPT, {"LOG": str(file) if file else log}, stdin + (kept_log or b""))
    scanned.seconds = time.monotonic() - started
    parts = _parts(output)
    gone = _gone(scanned.node, parts["errors"])
    where = _account(scanned, parts, gone, statistics)
    hits = _hits(parts)
    _count(scanned, [hit for hit in hits if hit.pattern in known], known, where)
    of_sample = [hit for hit in hits if hit.pattern in customers]
    _sample(scanned, of_sample, customers, where, server, kept_log or b"")
    scanned.places = [_readable(server, place, kept_log or b"") for place in scanned.places]
    return scanned


@dataclass(frozen=True)
class Hit:
    """A pattern in a file."""

    path: str
    offset: int
    pattern: bytes
    line: int = 0


def _hits(parts: Mapping[str, bytes]) -> list[Hit]:
    """Return the scan's hits; those in logs have a line."""
    hits = []
    for name in ("hits", "lines"):
        records = parts[name].split(b"\0")[:-1]
        for path_bytes, match in zip(records[::2], records[1::2], strict=True):
            path = path_bytes.decode(errors="surrogateescape")
            line, _, rest = match.partition(b":") if name == "lines" else (b"0", b"", match)
            offset, _, pattern = rest.partition(b":")
            hits.append(Hit(path, int(offset), pattern, int(line)))
    return hits


def _parts(output: bytes) -> dict[str, bytes]:
    """Return the script's results by name."""
    parts = {}
    for section in output.decode("ascii").split("# ")[1:]:
        name, _, content = section.partition("\n")
        parts[name] = base64.b64decode(content)
    return parts


def _gone(node: str, errors: bytes) -> set[str]:
    """Return the files that were removed; raises LabError where one exists and cannot be read."""
    gone = set()
    for line in errors.decode(errors="replace").splitlines():
        error = re.fullmatch(r"(?:grep|find): '?(.*?)'?: ([^:]*)", line)
        if not error or error[2] != "No such file or directory":
            what = f"{error[1]} cannot be read ({error[2]})" if error else line
            raise LabError(_not_whole(node, what))
        gone.add(error[1])
    return gone


def _account(
    scanned: Scan, parts: Mapping[str, bytes], gone: set[str], statistics: Collection[str]
) -> dict[str, Where]:
    """Count the bytes that were read, and return every file's place."""
    where: dict[str, Where] = {}
    for record in (parts["before"] + parts["after"]).decode(errors="surrogateescape").split("\0"):
        if not record:
            continue
        kind, size, path = record.split(" ", 2)
        if path in where:
            continue
        if kind != "f":
            raise LabError(
                _not_whole(scanned.node, f"{path} cannot be read (it is not a regular file)")
            )
        # A log that the engine keeps was put beside the data directory for the scan.
        where[path] = places.classify(path, statistics)
        if path in gone:
            scanned.vanished += 1
        else:
            scanned.read[where[path]] += int(size)
    return where


def _count(
    scanned: Scan,
    hits: Iterable[Hit],
    known: Mapping[bytes, tuple[Canary, Kind]],
    where: Mapping[str, Where],
) -> None:
    """Count the traces of each canary: neighbouring windows of one marker are one trace."""
    places_of: dict[tuple[str, str, str], list[Hit]] = {}
    for hit in hits:
        canary, kind = known[hit.pattern]
        scanned.kinds.setdefault(canary.marker, set()).add((where[hit.path], kind))
        # An id and a marker are two traces, even in one row.
        what = canary.marker if kind in ("marker", "window") else hit.pattern.hex()
        places_of.setdefault((hit.path, canary.region, what), []).append(hit)
    files: dict[tuple[str, str], tuple[int, Hit]] = {}
    for (path, region, _), group in places_of.items():
        group.sort(key=lambda hit: hit.offset)
        apart = sum(
            later.offset - earlier.offset > ONE_PLACE
            for earlier, later in itertools.pairwise(group)
        )
        scanned.hits[region, where[path]] += 1 + apart
        count, first = files.get((region, path), (0, group[0]))
        files[region, path] = (count + 1 + apart, min(first, group[0], key=lambda hit: hit.offset))
    scanned.places += [
        Place(region, where[path], count, file=path, line=first.line, offset=first.offset)
        for (region, path), (count, first) in files.items()
        if region
    ]


def _sample(
    scanned: Scan,
    hits: Sequence[Hit],
    customers: Mapping[bytes, Customer],
    where: Mapping[str, Where],
    server: NodeServer,
    log: bytes,
) -> None:
    """Enter the customers of the sample that were hit; a part of a longer e-mail is no hit."""
    emails = [hit for hit in hits if b"@" in hit.pattern][:COMPARED]
    parts_to_read = [(h.path, max(h.offset - 1, 0), len(h.pattern) + 3) for h in emails]
    whole = [hit for hit in hits if b"@" not in hit.pattern]
    for hit, text in zip(emails, _contexts(server, parts_to_read, log), strict=True):
        before, _, after = text.partition(hit.pattern)
        if is_whole(hit.pattern, before, after):
            whole.append(hit)
    files: dict[tuple[str, str], list[Hit]] = {}
    for hit in whole:
        customer = customers[hit.pattern]
        scanned.sampled.setdefault((customer.region, where[hit.path]), set()).add(customer)
        files.setdefault((customer.region, hit.path), []).append(hit)
    for (region, path), group in files.items():
        first = min(group, key=lambda hit: hit.offset)
        scanned.places.append(
            Place(
                region, where[path], len(group), file=path, line=first.line,
                offset=first.offset, is_sample=True,
            )
        )  # fmt: skip


def _readable(server: NodeServer, place: Place, log: bytes) -> Place:
    """Return a place with its path below the data directory, and a log line's severity."""
    severity = ""
    if place.where == "log":
        start = max(place.offset - LINE, 0)
        (text,) = _contexts(server, [(place.file, start, place.offset - start)], log)
        kinds = SEVERITY.findall(text.rpartition(b"\n")[2])
        severity = kinds[0].decode() if kinds else ""
    # A log that the engine keeps was put beside the data directory for the scan.
    file = "the server's log" if place.file.startswith("/") else place.file.removeprefix("./")
    return replace(place, file=file, severity=severity)


def _contexts(
    server: NodeServer, parts_to_read: Sequence[tuple[str, int, int]], log: bytes
) -> list[bytes]:
    """Return parts of files by path, first byte and length; b"" of a file that is gone."""
    kept_by_engine = bool(log) and server.log_file() is None
    remote = [part for part in parts_to_read if not (kept_by_engine and part[0].startswith("/"))]
    lines = [
        f"{first} {count} {base64.b64encode(os.fsencode(path)).decode()}\n"
        for path, first, count in remote
    ]
    output = server.run(CONTEXT_SCRIPT, {}, "".join(lines).encode()) if lines else b""
    parts = dict(zip(remote, map(base64.b64decode, output.split(b"\n")), strict=False))
    return [
        parts[part] if part in parts else log[part[1] : part[1] + part[2]] for part in parts_to_read
    ]


def _not_whole(node: str, what: str) -> str:
    return f"{node}: {what}: without it the audit proves nothing; repair or remove it"
