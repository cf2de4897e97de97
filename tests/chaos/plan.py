"""What a seed does: a list of rounds, drawn before anything runs. The same seed is the same plan."""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from etl_core.replication.failpoint_actions import DELAY, PERMANENT, PLACES
from etl_core.replication.failpoints import RANGE_STAGED


class Fault(Enum):
    """What happens while the writers write; the value is what a person reads."""

    NONE = "nothing"
    KILL = "kill -9"
    TERMINATE = "SIGTERM"
    STOPPED_PROCESS = "SIGSTOP, another process takes over, SIGCONT"
    SERVER_STOP = "immediate stop of the server"
    SERVER_KILL = "kill -9 of the server"
    CUT = "all connections to the source are cut"
    SILENCE = "the network is silent, then kill -9"
    TWO_CONSUMERS = "a second process streams at once"
    DESTINATION_HELD = "the destination's file is held by another process's connection"
    STORE_HELD = "the state store is locked"
    OLD_DESTINATION = "an older copy of the destination's file is put back"
    OLD_STORE = "the state store is restored from a backup"
    FULL = "the disk of the destination is full"
    DELAYED = "every packet is 20 to 200 ms late"
    RESYNC = "etl resync of a table"
    PAUSE = "etl pause of a table, later etl resume"
    PUBLICATION = "a table is taken out of the publication, changed, and added again"
    PUBLISH = "the publication publishes inserts alone for a while"


@dataclass(frozen=True, slots=True)
class Round:
    """A process is started with `failpoints`, writers write `transactions` each, `fault` happens, they write again.

    `settles`: the fault waits until what was written is durable; else it meets the process wherever it is.
    """

    failpoints: str
    fault: Fault
    table: str
    transactions: int
    settles: bool


def plan_rounds(seed: int, rounds: int) -> list[Round]:
    """The rounds of a seed; a longer campaign begins with the rounds of a shorter one."""
    draw = random.Random(f"plan {seed}")
    return [_round(draw) for _ in range(rounds)]


def _round(draw: random.Random) -> Round:
    fault = draw.choice(list(Fault))
    failpoints = ",".join(_failpoint(draw) for _ in range(draw.choice([0, 1, 1, 2])))
    table = draw.choice(["plain_a", "plain_b", "wide", "parted"])
    return Round(failpoints, fault, table, draw.choice([5, 20, 60]), draw.random() < 0.6)


def _failpoint(draw: random.Random) -> str:
    place = PLACES[draw.choice([name for name in PLACES if name != RANGE_STAGED])]  # only a helper reaches that
    action = draw.choice([action for action in place.actions if action != PERMANENT])
    if action == DELAY:
        return f"{place.name}:{DELAY}:{draw.choice(['0.2', '1'])}:{draw.randint(1, 3)}"
    return f"{place.name}:{action}:{draw.randint(1, 4)}"
