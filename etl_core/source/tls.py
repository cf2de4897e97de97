"""What has arrived over TLS and is not in the socket any more: asked of OpenSSL, in the very copy that libpq uses.

libpq hands on one TLS record each time that it is asked to read, and does not say whether there are more; the walsender
makes a record of every message. OpenSSL can read many of them from the socket at once (read-ahead), which saves a third
of the reader's CPU, but only libpq itself knows its connection's SSL object. Its function `PQsslStruct` hands it out,
and a symbol that is looked up in psycopg's extension module is found in the libraries that this module was linked to,
not in another copy of OpenSSL in the process.

Where psycopg has no such module (its pure Python implementation), or one of these symbols is not found, or libpq was
built with another library than OpenSSL, it is off by itself: the reader then asks libpq once more than it must.
https://www.postgresql.org/docs/current/libpq-status.html#LIBPQ-PQSSLSTRUCT
https://docs.openssl.org/master/man3/SSL_CTX_set_read_ahead/ and https://docs.openssl.org/master/man3/SSL_read/
"""

from __future__ import annotations

import ctypes
import importlib
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import pq

_MODULES = {"binary": "psycopg_binary.pq", "c": "psycopg_c.pq"}


def read_ahead(connection: psycopg.Connection[Any]) -> Callable[[], bool] | None:
    """Has OpenSSL read ahead. Returns whether there is something to be read now, to be asked by the reading thread.

    None if it cannot be done on this connection.
    """
    module = _MODULES.get(pq.__impl__)
    # An address, which the protocol of psycopg's implementations does not have.
    address: int | None = getattr(connection.pgconn, "pgconn_ptr", None)
    if module is None or not connection.pgconn.ssl_in_use or not address:
        return None
    try:
        # PyDLL keeps the interpreter's lock: none of these calls waits.
        library = ctypes.PyDLL(importlib.import_module(module).__file__)
        find, peek, set_read_ahead = library.PQsslStruct, library.SSL_peek, library.SSL_set_read_ahead
    except (ImportError, OSError, AttributeError, TypeError):
        return None
    find.restype, find.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_char_p]
    peek.restype, peek.argtypes = ctypes.c_int, [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int]
    set_read_ahead.restype, set_read_ahead.argtypes = None, [ctypes.c_void_p, ctypes.c_int]
    ssl = find(address, b"OpenSSL")
    if not ssl:
        return None
    set_read_ahead(ssl, 1)
    byte = ctypes.create_string_buffer(1)

    def is_readable() -> bool:
        # Found anew each time: libpq frees it the moment that it finds the connection broken.
        found = find(getattr(connection.pgconn, "pgconn_ptr", None), b"OpenSSL")
        return bool(found) and peek(found, byte, 1) > 0

    return is_readable
