"""What may not be in the repository."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]

# In parts, or this file would be a finding itself.
HOSTS = re.compile(
    "|".join(
        (
            r"registry-1\." + r"docker\.io",
            r"index\." + r"docker\.io",
            r"(?:test\.)?pypi\." + r"org",
            r"files\.python" + r"hosted",
            r"galaxy\." + r"ansible\.com",
            r"(?:extra-)?index-url\s*" + r"=",
            r"--(?:extra-)?index" + r"-url",
            r"https?://\S+/" + r"simple\b",
            r"registry-" + r"mirrors",
        )
    )
)


def tracked() -> list[Path]:
    done = subprocess.run(
        ["git", "ls-files", "-z"], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    return [CHECKOUT / name for name in done.stdout.split("\0") if name]


def test_no_file_names_a_registry_or_a_mirror() -> None:
    """Where packages and images come from is the machine's to say, not the project's."""
    findings = [
        f"{path.relative_to(CHECKOUT)}:{number}: {line.strip()}"
        for path in tracked()
        if path.is_file()
        for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1)
        if HOSTS.search(line)
    ]
    assert findings == []


def test_no_state_of_a_lab_is_tracked() -> None:
    names = {path.relative_to(CHECKOUT).parts[0] for path in tracked()}
    assert not {name for name in names if name.startswith((".lab", ".venv", ".cache"))}
