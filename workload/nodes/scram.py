"""What PostgreSQL stores of a password, made here, so that a server never sees the password."""

from __future__ import annotations

import base64
import hashlib
import hmac

ITERATIONS = 4096


def verifier(password: str, role: str) -> str:
    """Return the SCRAM-SHA-256 verifier of a role's password (RFC 5802, RFC 7677).

    The salt is derived from the password and the role's name: the same input gives the same
    verifier, and SQL can tell whether a role has it already. Raises nothing; the password has to
    be ASCII, which the lab's generated ones are.
    """
    secret = password.encode()
    salt = hashlib.sha256(b"\0".join((b"geo-sharding-lab", role.encode(), secret))).digest()[:16]
    salted = hashlib.pbkdf2_hmac("sha256", secret, salt, ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    b64 = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return f"SCRAM-SHA-256${ITERATIONS}:{b64[0]}${b64[1]}:{b64[2]}"
