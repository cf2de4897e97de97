"""A look at something that may not answer, for whoever wants to know now: `etl status` must not wait for a minute."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from etl_core.errors import TransientError

T = TypeVar("T")


class Look(Generic[T]):
    """Asks `question` in a thread of its own, from its creation on. A client library's call cannot be interrupted."""

    def __init__(self, what: str, question: Callable[[], T]) -> None:
        """`what` is the subject of the sentence that nothing was answered, such as `the source`."""
        self._what = what
        self._question = question
        self._answer: T | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._ask, name=f"look at {what}", daemon=True)
        self._thread.start()

    def answer(self, seconds: float) -> T:
        """What was answered, waiting at most so long. Raises the question's error, or that nothing was answered."""
        self._thread.join(seconds)
        if self._thread.is_alive():
            raise TransientError(f"unknown: {self._what} did not answer within {seconds:g} s")
        if self._error is not None:
            raise self._error
        return self._answer  # type: ignore[return-value]

    def _ask(self) -> None:
        try:
            self._answer = self._question()
        except BaseException as error:
            self._error = error
