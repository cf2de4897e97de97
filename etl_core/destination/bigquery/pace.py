"""How fast batches may follow each other. https://cloud.google.com/bigquery/quotas

A quota that is used up is refused until time has passed, and trying at the old pace uses it up again. So after a
refusal batches keep a distance, which doubles with the next one and shrinks when none comes; what is committed at the
source meanwhile makes the next batch larger, and a row cheaper.
"""

from __future__ import annotations

import logging
import time

_log = logging.getLogger(__name__)

_FIRST = 5.0
_LONGEST = 30.0
"""Seconds. A process that is asked to end waits as long."""
_ENOUGH = 20
"""Batches without a refusal after which the distance is halved."""


class Pace:
    """The distance between the beginnings of two batches, in seconds; 0 until a quota is used up. One thread."""

    def __init__(self) -> None:
        self.distance = 0.0
        self._begun = 0.0
        self._accepted = 0

    def wait(self) -> None:
        """Until the next batch may begin."""
        remaining = self._begun + self.distance - time.monotonic()
        if self.distance and remaining > 0:
            time.sleep(remaining)
        self._begun = time.monotonic()

    def refused(self) -> None:
        """A quota is used up."""
        self._accepted = 0
        self.distance = min(max(_FIRST, 2 * self.distance), _LONGEST)
        _log.warning("a quota of BigQuery is used up: from now on a batch every %.0f s at most", self.distance)

    def accepted(self) -> None:
        """A batch was written."""
        if not self.distance:
            return
        self._accepted += 1
        if self._accepted < _ENOUGH:
            return
        self._accepted = 0
        self.distance = self.distance / 2 if self.distance > _FIRST else 0.0
        now = f"a batch every {self.distance:.0f} s at most" if self.distance else "as batches come"
        _log.info("no quota of BigQuery was used up for %d batches: from now on %s", _ENOUGH, now)
