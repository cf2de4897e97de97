"""A certificate authority for one test server: its certificate, and one for a client."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

from etl_core.errors import ConfigError
from etl_core.testing.postgres_cache import server_uid

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

Tls: TypeAlias = Literal["off", "offered", "required"]
"""What a server does over TCP: TLS never, TLS next to connections without it, TLS alone.

With TLS, a client shows a certificate of the server's own authority.
"""

_DAYS = 3650


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files in `directory`: `ca.crt`, and `server` and `client` each with `.crt` and `.key`."""

    directory: Path

    @property
    def server_settings(self) -> dict[str, str]:
        """Lines of postgresql.conf."""
        return {
            "ssl": "on",
            "ssl_ca_file": str(self.directory / "ca.crt"),
            "ssl_cert_file": str(self.directory / "server.crt"),
            "ssl_key_file": str(self.directory / "server.key"),
        }

    @property
    def client_parameters(self) -> dict[str, str]:
        """Parameters of libpq: the server's certificate is checked by authority and by name, ours is shown."""
        return {
            "sslmode": "verify-full",
            "sslrootcert": str(self.directory / "ca.crt"),
            "sslcert": str(self.directory / "client.crt"),
            "sslkey": str(self.directory / "client.key"),
        }


def ensure_certificates(directory: Path, *, host: str, address: str, user: str) -> Certificates:
    """Makes what `directory` lacks: a server's certificate for `host` and `address`, a client's for the role `user`.

    They are valid for ten years. Raises ConfigError when the package cryptography is not installed.
    """
    certificates = Certificates(directory)
    if (directory / "client.crt").exists():  # written last
        return certificates
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise ConfigError(
            "the package cryptography, which makes certificates, is not installed",
            hint="pip install 'etl-dagster[testing]'",
        ) from None
    directory.mkdir(mode=0o755, exist_ok=True)
    ca_key, server_key, client_key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(3))
    ca = _certificate("etl test authority", ca_key, "etl test authority", ca_key, x509.BasicConstraints(True, 0))
    names = x509.SubjectAlternativeName([x509.DNSName(host), x509.IPAddress(ip_address(address))])
    server = _certificate(host, server_key, "etl test authority", ca_key, names)
    client = _certificate(user, client_key, "etl test authority", ca_key, x509.BasicConstraints(False, None))
    _write_key(directory / "server.key", server_key, owner=server_uid())
    _write_key(directory / "client.key", client_key, owner=os.geteuid())
    for name, certificate in (("ca", ca), ("server", server), ("client", client)):
        _write_certificate(directory / f"{name}.crt", certificate)
    return certificates


def _certificate(
    subject: str,
    key: EllipticCurvePrivateKey,
    issuer: str,
    issuer_key: EllipticCurvePrivateKey,
    extension: x509.ExtensionType,
) -> x509.Certificate:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    now = datetime.now(UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(_name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=_DAYS))
        .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
    )
    return builder.sign(issuer_key, SHA256())


def _name(common_name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _write_key(file: Path, key: EllipticCurvePrivateKey, *, owner: int) -> None:
    """PostgreSQL and libpq refuse a key that others may read."""
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    file.touch(mode=0o600)
    file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    if os.geteuid() == 0:
        os.chown(file, owner, owner)


def _write_certificate(file: Path, certificate: x509.Certificate) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding

    file.write_bytes(certificate.public_bytes(Encoding.PEM))
    file.chmod(0o644)
