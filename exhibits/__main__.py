"""Show one exhibit: python -m exhibits NAME [--seconds N]."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

from rich.console import Console

from exhibits import shared_volume
from workload.errors import LabError

#: Each takes the seconds of writing, the asked-for program folder, and where to print.
EXHIBITS: dict[str, Callable[[int, str, Console], None]] = {"shared-volume": shared_volume.show}

#: Seconds after which an exhibit ends and cleans up, so that it takes less than a minute.
LIMIT_S = 50
MOST_SECONDS = 30


def _seconds(text: str) -> int:
    value = int(text)
    if not 1 <= value <= MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to {MOST_SECONDS}")
    return value


def _ended(number: int, _frame: object) -> NoReturn:
    sys.exit(128 + number)


def _late(_number: int, _frame: object) -> NoReturn:
    # Not a LabError: code that waits for a server would handle it as an error of the server.
    sys.exit(
        f"exhibits: not finished in {LIMIT_S} s, the machine is too busy: ask for fewer --seconds"
    )


def main() -> int:
    """Show the exhibit asked for; return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m exhibits", description=__doc__)
    parser.add_argument("name", nargs="?", default="", help=", ".join(EXHIBITS))
    parser.add_argument("--seconds", type=_seconds, default=20, help="how long to write (20)")
    asked = parser.parse_args()
    if asked.name not in EXHIBITS:
        print(f"exhibits: no exhibit '{asked.name}': use {', '.join(EXHIBITS)}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _ended)
    signal.signal(signal.SIGALRM, _late)
    signal.alarm(LIMIT_S)
    bin_dir = os.environ.get("LAB_POSTGRES_BIN_DIR", "")
    EXHIBITS[asked.name](asked.seconds, bin_dir, Console(width=80))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"exhibits: {error}")
    except KeyboardInterrupt:
        print("exhibits: interrupted; servers and data are removed", file=sys.stderr)
        sys.exit(130)
