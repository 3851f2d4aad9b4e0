"""Output of all rooms: tables of 80 columns, sizes, and text that the lab did not write."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

#: Characters of a foreign text that a message shows.
SHOWN = 60


def table(title: str = "", padding: tuple[int, int, int, int] = (0, 1, 0, 0)) -> Table:
    """Return an empty table in the lab's style.

    With Rich's padding the longest phase, or ten thousand requests, would be cut short.
    """
    return Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=padding)


def size(count: int) -> str:
    """Return a number of bytes as text, in powers of ten, with no line break before its unit."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:,.1f}\u00a0{unit}"
    return f"{count}\u00a0B"


def printable(text: str, longest: int = SHOWN) -> str:
    """Return an untrusted text on one line: control characters escaped, the end cut.

    So a line feed cannot forge a line, and an escape sequence cannot change the terminal.
    """
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in text[:longest]
    )
    return shown if len(text) <= longest else f"{shown}... ({len(text):,} characters)"
