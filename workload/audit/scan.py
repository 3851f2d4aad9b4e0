"""Look for canaries in a node's raw files, without trusting what SQL shows.

GNU grep does it, in a script on the node's data directory: it reads hundreds of MB/s, and the
images have it. It holds a line in memory, so lines have to be short: in PostgreSQL's own files they
end at zero bytes (-z), of which these are full, and in logs at line feeds.
"""

from __future__ import annotations

import base64
import itertools
import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from workload.audit import places
from workload.audit.canaries import Canary, Kind
from workload.audit.places import Where
from workload.errors import LabError
from workload.nodes.server import NodeServer

#: Two finds of one marker this close, in bytes, are parts of one: a compressed one has a byte more
#: for every eight letters, and where WAL goes over to a new page there is a header of up to 40.
ONE_PLACE = 72

# Its input is the patterns in base64, on one line, and after that the server's log where that is no
# file. Paths come out as they are, so base64 again: an engine passes on text alone.
#
# Who deals with the list gets every file that is there at the beginning, and in a second round
# every one that has come meanwhile: the new file of a table that is rewritten, the next WAL
# segment. Every grep builds the patterns' trie first, so there is one for each processor and none
# for each file.
SCRIPT = r"""
export LC_ALL=C
cd "$PGDATA"
[ -e PG_VERSION ] || { echo "there is no cluster in $PGDATA" >&2; exit 1; }
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
IFS= read -r patterns
printf %s "$patterns" | base64 -d >"$work/patterns"
log=$LOG
if [ "$log" = - ]; then
  log=$work/server.log
  cat >"$log"
fi
: >"$work/hits"
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
      # 123: one of several greps found nothing, or could not read a file, which it says.
      [ "$status" = 0 ] || [ "$status" = 123 ]
    } &
    pids="$pids $!"
  done
  for pid in $pids; do
    wait "$pid" || { echo "grep or xargs failed" >&2; exit 1; }
  done
  status=0
  xargs -0 -r grep -aobHZF -f "$work/patterns" -- <"$work/part.logs" >"$work/part.lines" \
    2>"$work/part.logs.errors" || status=$?
  [ "$status" = 0 ] || [ "$status" = 123 ] || { echo "grep or xargs failed" >&2; exit 1; }
  tr '\n' '\0' <"$work/part.lines" >>"$work/hits"
  cat "$work"/part.*.hits >>"$work/hits"
  cat "$work"/part.*.errors >>"$work/errors"
}

list before
# The largest first, dealt out in turn.
sort -z -k2,2rn "$work/before" | sed -z -n 's/^f [0-9]* //p' | scan
list after
comm -z -13 "$work/before.names" "$work/after.names" | scan
for name in before after hits errors; do
  echo "# $name"
  base64 "$work/$name"
done
"""


@dataclass
class Scan:
    """What a scan of one node has read and found."""

    node: str
    seconds: float = 0.0
    #: Bytes by place.
    read: Counter[Where] = field(default_factory=Counter)
    #: Files that were gone, or came to be gone, before they were read.
    vanished: int = 0
    #: Places by region; the control's region is "".
    hits: Counter[tuple[str, Where]] = field(default_factory=Counter)
    #: What was found of each canary, by its marker.
    kinds: dict[str, set[tuple[Where, Kind]]] = field(default_factory=dict)
    #: The server's log is kept by nobody.
    no_log: bool = False


def scan(
    server: NodeServer,
    canaries: Iterable[Canary],
    statistics: Collection[str] = (),
) -> Scan:
    """Search all of a node's files, and its server's log, for canaries.

    statistics: paths of the statistics' files, as pg_relation_filepath() gives them. Raises
    LabError, with node and file, where one cannot be read: a part that nobody looked at holds no
    proof.
    """
    known: dict[bytes, tuple[Canary, Kind]] = {}
    for canary in canaries:
        known.update({pattern: (canary, kind) for pattern, kind in canary.patterns().items()})
    found = Scan(server.place.node)
    stdin = base64.b64encode(b"\n".join(known) + b"\n") + b"\n"
    started = time.monotonic()
    file = server.log_file()
    said = server.log_bytes() if file is None else b""
    log = "-" if said else ""
    found.no_log = file is None and said is None
    output = server.run(SCRIPT, {"LOG": str(file) if file else log}, stdin + (said or b""))
    found.seconds = time.monotonic() - started
    parts = _parts(output)
    gone = _gone(found.node, parts["errors"])
    where = _account(found, parts, gone, statistics)
    _count(found, parts["hits"], known, where)
    return found


def _parts(output: bytes) -> dict[str, bytes]:
    """Return the script's results by name."""
    parts = {}
    for section in output.decode("ascii").split("# ")[1:]:
        name, _, content = section.partition("\n")
        parts[name] = base64.b64decode(content)
    return parts


def _gone(node: str, errors: bytes) -> set[str]:
    """Return the files that were gone; raises LabError where one is there and cannot be read."""
    gone = set()
    for line in errors.decode(errors="replace").splitlines():
        found = re.fullmatch(r"(?:grep|find): '?(.*?)'?: ([^:]*)", line)
        if not found or found[2] != "No such file or directory":
            what = f"{found[1]} cannot be read ({found[2]})" if found else line
            raise LabError(_not_whole(node, what))
        gone.add(found[1])
    return gone


def _account(
    found: Scan, parts: Mapping[str, bytes], gone: set[str], statistics: Collection[str]
) -> dict[str, Where]:
    """Sum up what was read, and return every file's place."""
    where: dict[str, Where] = {}
    for record in (parts["before"] + parts["after"]).decode(errors="surrogateescape").split("\0"):
        if not record:
            continue
        kind, size, path = record.split(" ", 2)
        if path in where:
            continue
        if kind != "f":
            raise LabError(_not_whole(found.node, f"{path} cannot be read (it is no file)"))
        # A log that the engine keeps was put beside the data directory for the scan.
        where[path] = places.classify(path, statistics)
        if path in gone:
            found.vanished += 1
        else:
            found.read[where[path]] += int(size)
    return where


def _count(
    found: Scan,
    hits: bytes,
    known: Mapping[bytes, tuple[Canary, Kind]],
    where: Mapping[str, Where],
) -> None:
    """Count the places of each canary: windows of one marker that are side by side are one."""
    records = hits.split(b"\0")[:-1]
    places_of: dict[tuple[str, str, str], list[int]] = {}
    for path_bytes, match in zip(records[::2], records[1::2], strict=True):
        path = path_bytes.decode(errors="surrogateescape")
        offset, _, pattern = match.partition(b":")
        canary, kind = known[pattern]
        found.kinds.setdefault(canary.marker, set()).add((where[path], kind))
        # An id and a marker are places of their own, be they in one row.
        what = canary.marker if kind in ("marker", "window") else pattern.hex()
        places_of.setdefault((path, canary.region, what), []).append(int(offset))
    for (path, region, _), offsets in places_of.items():
        offsets.sort()
        apart = sum(later - earlier > ONE_PLACE for earlier, later in itertools.pairwise(offsets))
        found.hits[region, where[path]] += 1 + apart


def _not_whole(node: str, what: str) -> str:
    return f"{node}: {what}: the audit would not be whole, so it proves nothing; mend or remove it"
