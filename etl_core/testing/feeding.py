"""What `SourceModel.stream` yields, into an assembler, as the reader of a stream does it."""

from __future__ import annotations

from collections.abc import Iterable

from etl_core.lsn import Lsn
from etl_core.protocol.messages import Begin, Commit, Message
from etl_core.replication.assembler import Assembler
from etl_core.testing.source_model import build_frame


def feed(assembler: Assembler, items: Iterable[Message | bytes], limit: Lsn | None = None) -> Assembler:
    """Row messages are given as frames; Begin and Commit may be either. Scanned before each message and at the end."""
    for item in items:
        if isinstance(item, bytes):
            assembler.segment.append(item)
        elif isinstance(item, Begin | Commit):
            assembler.segment.append(build_frame(item))
        else:
            assembler.scan(limit)
            assembler.on_message(item)
    assembler.scan(limit)
    return assembler
