"""Where a source is, read from its connection string without a database driver, which a code location does not load.

Only what is certain is read: what libpq would take from its own variables, a service file or a list of hosts is not
known here.
"""

import re
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

# A keyword string: values with spaces or quotes stand in quotes, with backslashes before those within.
_PAIR = re.compile(r"(?P<keyword>\w+)\s*=\s*(?:'(?P<quoted>(?:[^'\\]|\\.)*)'|(?P<plain>\S+))")
_PORT = "5432"


@dataclass(frozen=True, slots=True)
class Address:
    """A server and a database of it, as far as the configuration says."""

    host: str | None = None
    port: str = _PORT
    database: str | None = None

    @property
    def uri(self) -> str | None:
        """`postgresql://host:port/database`, without a user; None unless all of it is known."""
        if not self.host or not self.database or "," in f"{self.host}{self.port}":
            return None
        return f"postgresql://{self.host}:{self.port}/{self.database}"


def parse_address(dsn: str) -> Address:
    """What a connection string says: a URL, or keywords and values."""
    if re.match("postgres(ql)?://", dsn):
        return _from_url(dsn)
    values = {pair["keyword"]: pair["plain"] or _unescaped(pair["quoted"] or "") for pair in _PAIR.finditer(dsn)}
    return Address(values.get("host"), values.get("port", _PORT), values.get("dbname"))


def _from_url(url: str) -> Address:
    parts = urlsplit(url)
    given = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    host, _, port = parts.netloc.rpartition("@")[2].partition(":")
    if host.startswith("["):  # an IPv6 address has colons of its own
        host, _, port = parts.netloc.rpartition("@")[2].partition("]:")
        host = host.rstrip("]") + "]"
    return Address(
        given.get("host", unquote(host)) or None,
        given.get("port", port) or _PORT,
        given.get("dbname", unquote(parts.path[1:])) or None,
    )


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)
