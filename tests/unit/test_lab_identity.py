"""Python and Ansible derive one lab from the same environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from plugins.filter.lab_server import node_labels
from tests.fixtures.refusals import Refusal
from workload.errors import LabError
from workload.lab import CHECKOUT, LABEL_HOME, LABEL_NAME, LABEL_NODE, Lab, home_path


def inventory_says(environ: dict[str, str]) -> tuple[str, Path]:
    """Return the name and the folder that inventory/lab gives to the playbooks."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("LAB_", "ANSIBLE_"))}
    command = [
        *(sys.executable, "-m", "ansible", "adhoc", "localhost"),
        *("-m", "ansible.builtin.debug", "-a", "msg={{ [lab_name, lab_home] | to_json }}"),
    ]
    done = subprocess.run(
        command, cwd=CHECKOUT, env={**clean, **environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    name, home = json.loads(json.loads(done.stdout.partition("=>")[2])["msg"])
    return name, home_path(home)


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="nothing is set"),
        pytest.param({"LAB_NAME": "", "LAB_HOME": ""}, id="set and empty"),
        pytest.param({"LAB_NAME": "second"}, id="name only"),
        pytest.param({"LAB_HOME": "/tmp/somewhere else"}, id="folder only"),
        pytest.param({"LAB_NAME": "second", "LAB_HOME": "/tmp/elsewhere/"}, id="both"),
        pytest.param({"LAB_HOME": "~/a-lab"}, id="folder below the user's home"),
    ],
)
def test_python_and_the_inventory_agree(environ: dict[str, str]) -> None:
    lab = Lab.from_environment(environ)
    assert inventory_says(environ) == (lab.name, lab.home)


def test_defaults() -> None:
    assert Lab.from_environment({}) == Lab("lab", CHECKOUT / ".lab")
    assert Lab.from_environment({"LAB_NAME": "two"}) == Lab("two", CHECKOUT / ".lab-two")


@pytest.mark.parametrize("name", ["Lab", "2nd", "a b", "../x", "a.b", "x" * 32, "-x", "lab\n"])
def test_bad_name_is_refused_with_the_rule(name: str, refusal: Refusal) -> None:
    with pytest.raises(LabError, match="LAB_NAME is") as caught:
        Lab.from_environment({"LAB_NAME": name})
    refusal(f"LAB_NAME={name}", str(caught.value))


def test_labels_do_not_depend_on_how_the_folder_was_typed() -> None:
    lab = Lab("lab", Path("/srv/lab"))
    for typed in ("/srv/lab", "/srv/lab/", "/srv//lab"):
        labels = node_labels("eu", typed)
        assert labels == {LABEL_NAME: "lab", LABEL_HOME: "/srv/lab", LABEL_NODE: "eu"}
        assert lab.labels.items() <= labels.items()


def test_relative_folder_is_refused_where_it_would_mean_another_one(refusal: Refusal) -> None:
    with pytest.raises(LabError, match="LAB_HOME") as caught:
        home_path("labs/one")
    refusal("LAB_HOME=labs/one", str(caught.value))
