"""Which of the engine's reports of a wait go into an event log, whose every row stays in Dagster's storage for ever."""

import threading
import time

_REPEAT_AFTER = 30.0


class Waits:
    """A wait is told of every second, and its text counts the seconds: worth a row at first, and then now and then."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._told: dict[str, float] = {}

    def is_news(self, reason: str) -> bool:
        """Whether somebody else is waited for than in the last half minute."""
        # "… waits for pid 7 (open for 12 s, psql, active); prepared transaction x (open for 9 s)", see `Blocker`
        who = "; ".join(part.partition(" (")[0] for part in reason.split("; "))
        now = time.monotonic()
        with self._lock:
            self._told = {told: at for told, at in self._told.items() if now - at < _REPEAT_AFTER}
            if who in self._told:
                return False
            self._told[who] = now
            return True
