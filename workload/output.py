"""What every room prints with: tables of 80 columns, sizes, and text that is not the lab's own."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.table import Table

#: Characters of a foreign text that a message shows.
SHOWN = 60


def table(title: str = "", padding: tuple[int, int, int, int] = (0, 1, 0, 0)) -> Table:
    """Return an empty table as all of the lab's are.

    With Rich's own padding the longest phase, or ten thousand requests, would be cut short.
    """
    return Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, padding=padding)


def size(count: int) -> str:
    """Return a number of bytes for people, in powers of ten; its unit stays on its line."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= factor:
            return f"{count / factor:,.1f}\u00a0{unit}"
    return f"{count}\u00a0B"


def printable(text: str, longest: int = SHOWN) -> str:
    """Return a text of whoever wrote it on one line: control characters escaped, the end cut.

    A line feed cannot forge a line then, nor an escape sequence change the terminal.
    """
    shown = "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode()
        for each in text[:longest]
    )
    return shown if len(text) <= longest else f"{shown}... ({len(text):,} characters)"
