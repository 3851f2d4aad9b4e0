"""What the lab keeps of customers on the controller: its state folder, without the nodes' data."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workload.audit.sample import Customer
from workload.errors import LabError
from workload.lab import Lab

#: What each entry of the state folder may hold of customers, and why. No other entry may hold
#: anything of them, and no entry an e-mail of a person.
MAY_HOLD = {
    "ledger": "ids of customers and purchases, by which make verify tells what was acknowledged",
    "canaries.json": "e-mails and ids of canaries, who are no people",
}
#: Read by the audit as parts of their nodes.
NODES = "nodes"
CHUNK = 8_000_000
#: Bytes of a chunk's end that are read with the next one.
OVERLAP = 400
TOKEN = re.compile(
    rb"[^\s\"'<>(),;:=\\/|]+@[^\s\"'<>(),;:=\\/|]+|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
)


@dataclass
class Controller:
    """What was read, and how many customers of the sample each file has."""

    files: int = 0
    read: int = 0
    emails: Counter[str] = field(default_factory=Counter)
    #: Outside the files that may hold them.
    ids: Counter[str] = field(default_factory=Counter)

    def entry(self) -> dict[str, Any]:
        """Return it as residency.json has it."""
        return {
            "files": self.files,
            "bytes": self.read,
            "emails": [{"file": file, "hits": hits} for file, hits in self.emails.items()],
            "ids": [{"file": file, "hits": hits} for file, hits in self.ids.items()],
            "may_hold": MAY_HOLD,
        }


def read(lab: Lab, sample: Collection[Customer]) -> Controller:
    """Search all files of the state folder for the sample's e-mails and ids.

    Raises LabError where one cannot be read.
    """
    result = Controller()
    emails = {customer.email.encode() for customer in sample if customer.email}
    ids = {customer.id.encode() for customer in sample}
    for folder, folders, names in os.walk(lab.home):
        if Path(folder) == lab.home:
            folders[:] = [name for name in folders if name != NODES]
        for name in names:
            path = Path(folder, name)
            if not path.is_file():
                continue  # A socket, or removed since.
            try:
                _read(result, path, str(path.relative_to(lab.home)), emails, ids)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise LabError(
                    f"controller: {path} cannot be read ({error.strerror}): without it the audit"
                    " proves nothing; repair or remove it"
                ) from error
    return result


def _read(
    result: Controller, path: Path, name: str, emails: Collection[bytes], ids: Collection[bytes]
) -> None:
    result.files += 1
    may_hold_ids = name.partition("/")[0] in MAY_HOLD
    with path.open("rb") as file:
        rest = b""
        while chunk := file.read(CHUNK):
            result.read += len(chunk)
            text = rest + chunk
            rest = text[-OVERLAP:]
            # The ledger is large and has no @ at all.
            if may_hold_ids and b"@" not in text:
                continue
            tokens = {token.rstrip(b".!?") for token in TOKEN.findall(text)}
            if hits := len(tokens & emails):  # type: ignore[operator]
                result.emails[name] += hits
            if not may_hold_ids and (hits := len(tokens & ids)):  # type: ignore[operator]
                result.ids[name] += hits
