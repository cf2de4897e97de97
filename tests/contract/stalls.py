"""Processes that die or stand still at a function, within the test's own process."""

from collections.abc import Callable
from typing import Any

import pytest


def once_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, happens: Callable[[], None]) -> None:
    """`happens` before the first call of the function, as if the process had stood still there."""
    real = getattr(owner, name)

    def call(*arguments: Any, **keywords: Any) -> Any:
        monkeypatch.setattr(owner, name, real)
        happens()
        return real(*arguments, **keywords)

    monkeypatch.setattr(owner, name, call)


def dies() -> None:
    """For `once_before`: the process ends there."""
    raise LookupError("killed")
