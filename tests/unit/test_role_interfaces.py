"""A role's defaults and its argument specification are one interface, written twice."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

CHECKOUT = Path(__file__).resolve().parents[2]
ROLES = sorted(path.name for path in (CHECKOUT / "roles").iterdir() if path.is_dir())


def options(role: str) -> dict[str, Any]:
    path = CHECKOUT / "roles" / role / "meta/argument_specs.yml"
    return dict(yaml.safe_load(path.read_text())["argument_specs"]["main"]["options"])


def defaults_file(role: str) -> str:
    return (CHECKOUT / "roles" / role / "defaults/main.yml").read_text()


def test_there_are_roles() -> None:
    assert {"preflight", "node", "shop", "topology", "teardown"} <= set(ROLES)


@pytest.mark.parametrize("role", ROLES)
def test_defaults_are_the_options_that_are_not_required(role: str) -> None:
    optional = {
        name: option.get("default")
        for name, option in options(role).items()
        if not option.get("required")
    }
    assert (yaml.safe_load(defaults_file(role)) or {}) == optional


@pytest.mark.parametrize("role", ROLES)
def test_required_options_are_named_in_a_comment_of_the_defaults(role: str) -> None:
    required = {name for name, option in options(role).items() if option.get("required")}
    commented = set(re.findall(r"^# (\w+):$", defaults_file(role), re.MULTILINE))
    assert commented == required


@pytest.mark.parametrize("role", ROLES)
def test_inputs_carry_the_roles_name_and_a_description(role: str) -> None:
    for name, option in options(role).items():
        assert name.startswith(f"{role}_")
        assert option["description"], name


def test_the_roles_readme_says_what_their_argument_specs_say() -> None:
    readme = runpy.run_path(str(CHECKOUT / "scripts/roles-readme"))["readme"]()
    assert (CHECKOUT / "roles/README.md").read_text() == readme, "make roles-readme writes it"
