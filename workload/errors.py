"""The exceptions that a person reads as one line."""

from __future__ import annotations


class LabError(Exception):
    """What is wrong, with which value, and what to do: one line, no traceback."""


class WrongPasswordError(LabError):
    """A server is up and refuses the password, so neither waiting nor a new start helps."""
