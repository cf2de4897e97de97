from __future__ import annotations

import threading

import pytest

from etl_core.destination.memory import MemoryDatabase, MemoryDestination
from etl_core.errors import DestinationUnavailable
from etl_core.lsn import Lsn
from etl_core.testing.destination_tables import batch, changes, contents, orders, publish
from etl_core.testing.scripted_destination import Fault, ScriptedDestination


def _scripted(*faults: Fault) -> ScriptedDestination:
    return ScriptedDestination(MemoryDestination(MemoryDatabase(), "shop"), faults)


def test_a_fault_before_the_work_leaves_it_undone() -> None:
    destination = _scripted(Fault("write", 2, before=DestinationUnavailable("down")))
    publish(destination, orders())
    insert = changes(orders(), inserts=[(1, "a", "b", 1)])
    destination.write(batch(changes(orders()), expected=100, new=110))
    with pytest.raises(DestinationUnavailable, match="down"):
        destination.write(batch(insert, expected=110, new=120))
    destination.write(batch(insert, expected=110, new=120))
    assert destination.calls("write") == 3
    assert sum(contents(destination, orders()).values()) == 1


def test_a_fault_after_the_work_loses_the_answer() -> None:
    destination = _scripted(Fault("copy.publish", after=DestinationUnavailable("answer lost")))
    with pytest.raises(DestinationUnavailable, match="answer lost"):
        publish(destination, orders())
    assert destination.positions().tables == {orders().table_id: Lsn(100)}


def test_a_call_can_be_held_until_the_test_says() -> None:
    reached, until = threading.Event(), threading.Event()
    destination = _scripted(Fault("forget", reached=reached, until=until))
    publish(destination, orders())
    forgetting = threading.Thread(target=destination.forget, args=[orders().table_id])
    forgetting.start()
    assert reached.wait(300)
    assert destination.positions().tables == {orders().table_id: Lsn(100)}
    until.set()
    forgetting.join(300)
    assert destination.positions().tables == {}
