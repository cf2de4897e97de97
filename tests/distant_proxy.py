"""A line to a server far away: what goes through it arrives later, and in pieces that end anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self, TypeVar

_Result = TypeVar("_Result")
_KEEPALIVE = b"d\x00\x00\x00\x16k"
"""How a walsender's keepalive begins: CopyData, 22 bytes long, of kind k."""


class DistantProxy:
    """Listens on 127.0.0.1 within its `with` block, on a `port` of its own, for a server on 127.0.0.1.

    Each byte arrives `delay` seconds after it was sent, while others are on their way. What the server sends is handed
    on in pieces of `piece()` bytes. `keepalives` counts those of walsenders that went through, on a line without TLS;
    `requests` the pieces that came from clients.
    """

    def __init__(self, server_port: int, *, piece: Callable[[], int], delay: float = 0.02) -> None:
        self._server_port = server_port
        self._piece = piece
        self._delay = delay
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="distant-proxy", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._counted = threading.Condition()
        self.keepalives = 0
        self.requests = 0

    def __enter__(self) -> Self:
        self._thread.start()
        self._listener = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._listener.sockets[0].getsockname()[1]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def wait_for_keepalives(self, count: int, patience: float) -> None:
        """Waits until `count` keepalives have gone through."""
        with self._counted:
            if not self._counted.wait_for(lambda: self.keepalives >= count, patience):
                raise AssertionError(f"{self.keepalives} of {count} keepalives went through")

    def _call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _close(self) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:  # the server is down
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        for one in (writer, server_writer):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._line(reader, server_writer, lambda: 1 << 16, self._count_request)
        self._line(server_reader, writer, self._piece, self._count_keepalives())

    def _line(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        piece: Callable[[], int],
        seen: Callable[[bytes], None],
    ) -> None:
        """One direction: what is read is under way for `delay`, and reading goes on meanwhile."""
        # A line holds so much: whoever sends faster than pieces arrive is kept waiting.
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)
        for work in (self._take(source, under_way, seen), self._deliver(under_way, target, piece)):
            task = self._loop.create_task(work)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _take(
        self,
        source: asyncio.StreamReader,
        under_way: asyncio.Queue[tuple[float, bytes]],
        seen: Callable[[bytes], None],
    ) -> None:
        data = b"begin"
        while data:
            try:
                data = await source.read(1 << 16)
            except OSError:
                data = b""
            seen(data)
            await under_way.put((self._loop.time() + self._delay, data))

    async def _deliver(
        self,
        under_way: asyncio.Queue[tuple[float, bytes]],
        target: asyncio.StreamWriter,
        piece: Callable[[], int],
    ) -> None:
        with contextlib.suppress(OSError):
            while True:
                due, data = await under_way.get()
                if not data:
                    break
                await asyncio.sleep(due - self._loop.time())
                start = 0
                while start < len(data):
                    end = start + piece()
                    target.write(data[start:end])
                    await target.drain()
                    await asyncio.sleep(0)  # the other lines and the client come in between
                    start = end
        target.close()

    def _count_request(self, _: bytes) -> None:
        self.requests += 1

    def _count_keepalives(self) -> Callable[[bytes], None]:
        tail = b""

        def count(data: bytes) -> None:
            nonlocal tail
            both = tail + data
            tail = both[1 - len(_KEEPALIVE) :]
            if found := both.count(_KEEPALIVE):
                with self._counted:
                    self.keepalives += found
                    self._counted.notify_all()

        return count
