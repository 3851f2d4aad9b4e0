"""Certificates: one authority a lab, one key a region, by which its nodes prove who they are.

Foreign servers connect by a region's name and check it (verify-full), whatever address and relay
they go by. The nodes of a region share its key, so a base backup or a rewind may bring it along.
"""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from workload.errors import LabError
from workload.lab import Lab, write_atomically
from workload.nodes.server import NodeServer
from workload.sql import Login, connect

#: Below the data directory, which is where a server looks up relative paths.
FOLDER = "tls"
CA_FILE = f"{FOLDER}/ca.crt"
DAYS = 3650
SETTINGS = {
    "ssl_cert_file": f"{FOLDER}/server.crt",
    "ssl_key_file": f"{FOLDER}/server.key",
    "ssl": "on",
}
# The key comes by standard input: the environment of a container is there for docker inspect.
INSTALL = f"""
umask 077
key=$(cat)
mkdir -p "$PGDATA/{FOLDER}"
cd "$PGDATA/{FOLDER}"
installed="$CERTIFICATE$key
$AUTHORITY"
if printf '%s' "$installed" | cmp -s - installed; then
  echo same
else
  printf '%s' "$CERTIFICATE" >server.crt
  printf '%s\\n' "$key" >server.key
  printf '%s' "$AUTHORITY" >ca.crt
  printf '%s' "$installed" >installed
fi
"""


def host_name(region: str) -> str:
    """Return the name that a region's certificate is for."""
    return f"{region.replace('_', '-')}.geo-sharding-lab.invalid"


def ensure_certificates(lab: Lab, regions: list[str]) -> bool:
    """Ensure the authority and each region's certificate and key; return whether any was made."""
    folder = lab.home / "secrets" / "tls"
    created = False
    if not (folder / "ca.crt").exists():
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _certificate(f"geo-sharding-lab {lab.name}", key, None, None)
        _save(folder, "ca", key, certificate)
        created = True
    for region in regions:
        if not (folder / f"{region}.crt").exists():
            authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
            signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
            if not isinstance(signer, ec.EllipticCurvePrivateKey):
                raise LabError(f"{folder}/ca.key is no key of this lab: make teardown")
            key = ec.generate_private_key(ec.SECP256R1())
            _save(folder, region, key, _certificate(host_name(region), key, authority, signer))
            created = True
    return created


def install(lab: Lab, region: str, server: NodeServer, login: Login) -> bool:
    """Ensure that a node speaks TLS with its region's certificate; return whether anything changed.

    No restart: ssl and its files are read again on a reload. Raises LabError.
    """
    folder = lab.home / "secrets" / "tls"
    output = server.run(
        INSTALL,
        {
            "CERTIFICATE": (folder / f"{region}.crt").read_text(),
            "AUTHORITY": (folder / "ca.crt").read_text(),
        },
        (folder / f"{region}.key").read_bytes(),
    )
    changed = output.strip() != b"same"
    with connect(login, 10) as connection:
        connection.autocommit = True
        for name, value in SETTINGS.items():
            row = connection.execute("SELECT current_setting(%s)", (name,)).fetchone()
            if row != (value,):
                connection.execute(f"ALTER SYSTEM SET {name} = '{value}'")
                changed = True
        if changed:
            connection.execute("SELECT pg_reload_conf()")
    return changed


def _certificate(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate | None,
    signer: ec.EllipticCurvePrivateKey | None,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        # Clocks of nodes may differ.
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
    )
    if authority is not None:
        names = x509.SubjectAlternativeName([x509.DNSName(name)])
        builder = builder.add_extension(names, critical=False)
    return builder.sign(signer or key, hashes.SHA256())


def _save(
    folder: Path, name: str, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate
) -> None:
    # The key first: a certificate without one would never be made again.
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_atomically(folder / f"{name}.key", text.decode(), mode=0o600)
    public = certificate.public_bytes(serialization.Encoding.PEM)
    write_atomically(folder / f"{name}.crt", public.decode())
