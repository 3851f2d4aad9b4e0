"""The verifier that the server stores; that it logs in is shown in tests/integration."""

from __future__ import annotations

import re

from workload.nodes.scram import verifier as scram_verifier


def test_same_input_gives_the_same_verifier() -> None:
    assert scram_verifier("secret", "customers") == scram_verifier("secret", "customers")


def test_another_role_or_password_shares_no_part() -> None:
    one = scram_verifier("secret", "customers")
    for other in (scram_verifier("secret", "others"), scram_verifier("secret2", "customers")):
        assert not set(re.split(r"[$:]", one)[2:]) & set(re.split(r"[$:]", other)[2:])


def test_format_is_the_one_that_postgresql_takes_for_a_verifier() -> None:
    base64 = r"[A-Za-z0-9+/]"
    pattern = rf"SCRAM-SHA-256\$4096:{base64}{{22}}==\${base64}{{43}}=:{base64}{{43}}="
    assert re.fullmatch(pattern, scram_verifier("secret", "customers"))


def test_password_is_not_in_the_verifier() -> None:
    assert "secret" not in scram_verifier("secret", "customers")
