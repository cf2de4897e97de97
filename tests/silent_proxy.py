"""A hop before a server that can fall silent: its connections stay open, and nothing goes through them any more.

So does an ssh tunnel or a load balancer whose far side died. New connections work, unless they are refused. It can
also pass on late what it is given, as a line to another continent does.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Coroutine, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

_Result = TypeVar("_Result")


class SilentProxy:
    """Listens on 127.0.0.1 within its `with` block, on a `port` of its own, for a server on 127.0.0.1."""

    def __init__(self, server_port: int) -> None:
        self._server_port = server_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="silent-proxy", daemon=True)
        self._pumps: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._age = 0
        self._refuses = False
        self._delay = (0.0, 0.0)

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

    def fall_silent(self, *, refuse_new: bool = False) -> None:
        """From now on nothing goes through the connections there are; new ones are made, or closed at once."""

        async def silence() -> None:
            self._age += 1
            self._refuses = refuse_new

        self._call(silence())

    @contextlib.contextmanager
    def late(self, least: float, most: float) -> Iterator[None]:
        """Within the block, each piece of a connection's bytes is passed on so many seconds later, in order."""
        self._delay = (least, most)
        try:
            yield
        finally:
            self._delay = (0.0, 0.0)

    def _call(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _close(self) -> None:
        self._listener.close()
        for pump in self._pumps:
            pump.cancel()
        for writer in self._writers:
            writer.transport.abort()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        await asyncio.gather(*(writer.wait_closed() for writer in self._writers), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._server_port)
        except OSError:  # the server is down
            writer.transport.abort()
            return
        self._writers |= {writer, server_writer}
        for source, target in ((reader, server_writer), (server_reader, writer)):
            pump = self._loop.create_task(self._pump(source, target, self._age))
            self._pumps.add(pump)
            pump.add_done_callback(self._pumps.discard)

    async def _pump(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, age: int) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                if self._delay[1]:
                    await asyncio.sleep(random.uniform(*self._delay))
                if age == self._age:
                    target.write(data)
                    await target.drain()
        if age == self._age:
            target.close()
