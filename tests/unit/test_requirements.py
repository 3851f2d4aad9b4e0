"""The pins agree with each other and with what the collections file promises."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import yaml
from packaging.specifiers import SpecifierSet

from tests.fixtures.labs import CHECKOUT


def pins(name: str) -> dict[str, str]:
    lines = (CHECKOUT / name).read_text().splitlines()
    found = (re.match(r"([\w.-]+)==([\w.]+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def test_the_tests_run_on_what_the_lab_runs_on() -> None:
    run, dev = pins("requirements.txt"), pins("requirements-dev.txt")
    assert run
    assert {name: dev.get(name) for name in run} == run


def test_the_bundle_has_the_collections_that_are_promised() -> None:
    promised = yaml.safe_load((CHECKOUT / "collections" / "requirements.yml").read_text())
    spec = importlib.util.find_spec("ansible_collections")
    assert spec
    assert spec.submodule_search_locations
    bundle = Path(next(iter(spec.submodule_search_locations)))
    for collection in promised["collections"]:
        manifest = bundle.joinpath(*collection["name"].split("."), "MANIFEST.json")
        version = json.loads(manifest.read_text())["collection_info"]["version"]
        assert version in SpecifierSet(collection["version"])


def test_collections_in_use_are_promised() -> None:
    promised = yaml.safe_load((CHECKOUT / "collections" / "requirements.yml").read_text())
    names = {collection["name"] for collection in promised["collections"]}
    used = set()
    for path in (CHECKOUT / "roles").rglob("*.yml"):
        used |= set(re.findall(r"^\s+(community\.\w+)\.\w+:", path.read_text(), re.MULTILINE))
    assert used == names
