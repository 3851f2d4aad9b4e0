"""docs/architecture.md is the map: it lists what there is, once, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
MAP = (CHECKOUT / "docs/architecture.md").read_text().partition("## The map")[2]
SECTION = re.compile(r"^### `([\w/]+/)`")
ENTRY = re.compile(r"^- `([\w.]+)`: (.*)$")


def listed(below: str) -> list[str]:
    """Return the paths that the map lists below a folder."""
    section, paths = "", []
    for line in MAP.splitlines():
        if line.startswith("#"):
            heading = SECTION.match(line)
            section = heading[1] if heading else ""
        elif section.startswith(below) and (entry := ENTRY.match(line)):
            paths.append(section + entry[1])
    return sorted(paths)


def test_every_module_is_on_the_map_once() -> None:
    package = CHECKOUT / "workload"
    modules = [
        str(path.relative_to(CHECKOUT))
        for pattern in ("*.py", "*.sql")
        for path in package.rglob(pattern)
        if path.name != "__init__.py"
    ]
    assert listed("workload/") == sorted(modules)


def test_every_role_is_on_the_map_once() -> None:
    assert listed("roles/") == sorted(f"roles/{path.name}" for path in CHECKOUT.glob("roles/*/"))


def test_every_playbook_is_on_the_map_once() -> None:
    playbooks = CHECKOUT.glob("playbooks/*.yml")
    assert listed("playbooks/") == sorted(f"playbooks/{path.name}" for path in playbooks)


@pytest.mark.parametrize(
    "words",
    [
        "bulk copy",
        "canary",
        "change capture",
        "checksums",
        "cutover",
        "erasure",
        "failover",
        "foreign servers",
        "intermediate partition level",
        "latency emulation",
        "ledger",
        "logical replication",
        "online rewrite",
        "partitioning online",
        "residency audit",
        "round trips",
        "streaming (physical) replication",
        "two-phase move",
        "wait for replication",
        "WAN relay",
        "Who may import whom",
    ],
)
def test_the_map_has_the_words_that_a_stranger_searches_for(words: str) -> None:
    assert words in MAP


@pytest.mark.parametrize(
    "path", sorted((CHECKOUT / "docs/decisions").glob("*.md")), ids=lambda path: path.stem
)
def test_a_decision_says_its_status_and_date(path: Path) -> None:
    assert re.search(
        r"^(Accepted|Superseded by \[\d{3}\]\(.*\)), \d{4}-\d\d-\d\d\.$", path.read_text(), re.M
    )


@pytest.mark.parametrize(
    "path",
    [*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")],
    ids=lambda path: str(path.relative_to(CHECKOUT)),
)
def test_links_between_documents_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), f"{path.name} links to {target}"
