"""Filters: what a server is started and a role is made with."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any

from workload.lab import Lab, home_path

SCRAM_ITERATIONS = 4096


def server_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return settings as arguments of postgres: {"a": 1} gives ["-c", "a=1"]."""
    return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]


def scram_verifier(password: str, role: str) -> str:
    """Return what PostgreSQL stores of a password (RFC 5802, RFC 7677), so that it never sees it.

    The salt is derived from the password and the role's name: the same input gives the same
    verifier, and SQL can tell whether a role has it already. Raises nothing; the password has to
    be ASCII, which the lab's generated ones are.
    """
    secret = password.encode()
    salt = hashlib.sha256(b"\0".join((b"geo-sharding-lab", role.encode(), secret))).digest()[:16]
    salted = hashlib.pbkdf2_hmac("sha256", secret, salt, SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    b64 = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${SCRAM_ITERATIONS}:{b64[0]}${b64[1]}:{b64[2]}"


def node_labels(node: str, lab_name: str, lab_home: str) -> dict[str, str]:
    """Return the labels by which a node's container and volume are known as this lab's."""
    return Lab(lab_name, home_path(lab_home)).node_labels(node)


class FilterModule:
    """The filters by the names that playbooks use."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return the filters."""
        return {
            "lab_node_labels": node_labels,
            "lab_scram_verifier": scram_verifier,
            "lab_server_arguments": server_arguments,
        }
