"""How a connection reaches the source: over a unix socket, over TCP, over TLS, and how the server was verified."""

from __future__ import annotations

import ipaddress
import os
import socket
from dataclasses import dataclass
from typing import Literal

import psycopg

from etl_core.source.connection import Connection
from etl_core.source.sqlstate import translate

# Everybody may see their own session.
_ENCRYPTION = """
SELECT s.version, s.cipher, coalesce(g.encrypted, false)
FROM pg_catalog.pg_stat_ssl s LEFT JOIN pg_catalog.pg_stat_gssapi g USING (pid)
WHERE s.pid = pg_catalog.pg_backend_pid()
"""


@dataclass(frozen=True, slots=True)
class Transport:
    """What carries a connection. `str()` is how it is printed.

    `tls_version` and `cipher` are the server's words; None without TLS, and where a pooler in between ends it.
    `sslmode` is libpq's, the person's or its default; None without TLS. `is_local`: the other end is this machine, as
    far as the addresses tell: behind a tunnel's local end may be any host.
    """

    kind: Literal["unix", "tcp", "tls", "gssapi"]
    is_local: bool
    tls_version: str | None = None
    cipher: str | None = None
    sslmode: str | None = None

    def __str__(self) -> str:
        if self.kind == "unix":
            return "unix socket"
        if self.kind == "tcp":
            return "TCP without TLS"
        if self.kind == "gssapi":
            return "TCP with GSSAPI encryption"
        cipher = f" ({self.cipher})" if self.cipher else ""
        return f"{self.tls_version or 'TLS'}{cipher}, {self.sslmode}"

    @property
    def is_verified(self) -> bool:
        """Whether a server without a certificate of the trusted authority would have been refused."""
        return self.sslmode in ("verify-ca", "verify-full")


def transport_of(connection: Connection) -> Transport:
    """How `connection` reaches its server: libpq says whether TLS is in use, the server which."""
    with socket.socket(fileno=os.dup(connection.fileno())) as ours:
        family, here, there = ours.family, ours.getsockname(), ours.getpeername()
    if family == socket.AF_UNIX:
        return Transport("unix", is_local=True)
    is_local = here[0] == there[0] or ipaddress.ip_address(there[0].partition("%")[0]).is_loopback
    try:
        row = connection.execute(_ENCRYPTION).fetchone()
    except psycopg.Error as error:
        raise translate(error) from None
    version, cipher, has_gssapi = row or (None, None, False)
    if connection.pgconn.ssl_in_use:
        return Transport("tls", is_local, version, cipher, _parameter(connection, b"sslmode"))
    return Transport("gssapi" if has_gssapi else "tcp", is_local)


def _parameter(connection: Connection, keyword: bytes) -> str | None:
    """What libpq uses, from the connection string, the environment, a service file or its default."""
    for option in connection.pgconn.info:
        if option.keyword == keyword and option.val is not None:
            return option.val.decode()
    return None
