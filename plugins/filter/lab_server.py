"""Filters: a server's arguments and labels, and a role's password verifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workload.lab import Lab, home_path
from workload.nodes.scram import verifier
from workload.nodes.settings import problems


def node_labels(node: str, lab_home: str) -> dict[str, str]:
    """Return the labels by which a node's container and volume are known as this lab's."""
    return Lab.at(home_path(lab_home)).node_labels(node)


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {
            "lab_node_labels": node_labels,
            "lab_scram_verifier": verifier,
            "lab_setting_problems": problems,
        }
