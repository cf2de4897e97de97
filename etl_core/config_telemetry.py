"""`metrics:` and `traces:` of a configuration: where a process tells how it stands. Nothing here connects."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from etl_core.config_values import config_error

_ADDRESS = re.compile(r"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<host>[^:\s\[\]]*)):(?P<port>[0-9]{1,5})")
EVERYWHERE = "::"
"""All addresses of the host, of both kinds where it has both."""
_PORTS = range(1 << 16)


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where an endpoint listens. `host` "::" is every address of the host; `port` 0 is a free one."""

    host: str
    port: int

    @classmethod
    def parse(cls, where: str, text: str) -> Self:
        """`:9187`, `127.0.0.1:9187` or `[::1]:9187`. Raises ConfigError for the dotted field `where`."""
        match = _ADDRESS.fullmatch(text.strip())
        if match is None or int(match["port"]) not in _PORTS:
            raise config_error(where, "is not an address to listen at", hint='write ":9187" or "127.0.0.1:9187"')
        return cls(match["v6"] or match["host"] or EVERYWHERE, int(match["port"]))

    def __str__(self) -> str:
        host = "" if self.host == EVERYWHERE else f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class TelemetryConfig:
    """`prometheus` None serves no metrics; with `opentelemetry` copies, batches and hand-overs become spans."""

    prometheus: ListenAddress | None = None
    opentelemetry: bool = False
