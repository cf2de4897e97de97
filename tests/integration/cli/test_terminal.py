"""`etl` on a terminal: the live display, the cursor it gives back, and the question teardown asks."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import pytest

import etl_core
from tests.integration.cli.conftest import Project

HIDE_CURSOR, SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_ETL = (sys.executable, "-m", "etl_core.cli")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """`etl` on a pseudo-terminal. `raw` is all it wrote so far."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self._master, slave = pty.openpty()
        self.raw = ""
        self.process = subprocess.Popen(
            # The first terminal that a new session opens becomes its own: a typed Ctrl-C is a signal then.
            ["/bin/sh", "-c", 'exec "$@" <"$0" >"$0" 2>&1', os.ttyname(slave), *_ETL, *arguments],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(etl_core.__file__).parents[1]),
                "TERM": "xterm-256color",
                "COLUMNS": "120",
                "LINES": "40",
            },
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        # Kept open until the other side has it: without any, reading would end.
        self._slave: int | None = slave

    @property
    def text(self) -> str:
        return _ESCAPE.sub("", self.raw)

    def read_until(self, fragment: str) -> None:
        while fragment not in self.text:
            assert self._read(), f"ended without {fragment!r}: {self.text}"

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def wait(self) -> int:
        while self._read():
            pass
        return self.process.wait(300)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for end in (self._master, self._slave):
            if end is not None:
                os.close(end)

    def _read(self) -> bool:
        try:
            read = os.read(self._master, 65536)
        except OSError:  # what Linux answers when the other side is closed
            return False
        if self._slave is not None:
            os.close(self._slave)
            self._slave = None
        self.raw += read.decode("utf-8", "replace")
        return bool(read)


OpenTerminal = Callable[..., Terminal]


@pytest.fixture
def terminal(project: Project) -> Iterator[OpenTerminal]:
    opened = []

    def start(*arguments: str) -> Terminal:
        opened.append(Terminal(project.folder, *arguments))
        return opened[-1]

    yield start
    for each in opened:
        each.close()


def test_a_run_is_drawn_and_the_cursor_given_back(project: Project, terminal: OpenTerminal) -> None:
    project.run("run", "--until-caught-up")
    project.run("resync", "items")
    screen = terminal("run")
    screen.read_until("✓ public.items: copied 200 rows")
    while ["public.items", "ready"] not in [line.split()[:2] for line in project.run("status").out.splitlines()]:
        pass  # else the end says that it was not caught up
    project.database.execute("UPDATE orders SET note = 'x' WHERE id <= 10")
    screen.read_until("10 row changes so far: public.orders ~10")
    assert f"{project.pipeline} → duckdb" in screen.text
    screen.type("\x03")
    assert screen.wait() == 0
    assert "stopping at the next transaction boundary" in screen.text
    assert screen.text.splitlines()[-1].startswith("stopped at ")
    assert screen.raw.rindex(SHOW_CURSOR) > screen.raw.rindex(HIDE_CURSOR)


def test_the_second_ctrl_c_gives_the_cursor_back_too(project: Project, terminal: OpenTerminal) -> None:
    with duckdb.connect(project.warehouse):  # so that the first has no boundary to end at
        screen = terminal("run")
        screen.read_until(f"{project.pipeline} → duckdb")
        screen.type("\x03")
        screen.read_until("press Ctrl-C again")
        screen.type("\x03")
        assert screen.wait() == 130
    assert screen.raw.rindex(SHOW_CURSOR) > screen.raw.rindex(HIDE_CURSOR)
    assert "Traceback" not in screen.text


def test_teardown_asks_first(project: Project, terminal: OpenTerminal) -> None:
    project.run("run", "--until-caught-up")
    asked = terminal("teardown")
    asked.read_until("Go on? [y/N]")
    assert f"drop replication slot {project.slot}" in asked.text
    assert "drop publication shop_pub" in asked.text
    asked.type("\r")
    assert asked.wait() == 1
    assert "nothing was dropped" in asked.text
    assert "public.orders  ready" in project.run("status").out

    told = terminal("teardown")
    told.read_until("Go on? [y/N]")
    told.type("y\r")
    assert told.wait() == 0
    assert "dropped publication shop_pub" in told.text
