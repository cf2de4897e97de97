"""Row changes, one kind at a time: what the source has after each is what the destination has."""
# ruff: noqa: S608 the tests write their own SQL

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.integration.replication.conftest import Lab

BIG = "repeat('x', 9000)"


def toasted(lab: Lab, name: str = "t", more: str = "") -> None:
    """A table whose column `big` is stored out of line."""
    lab.execute(f"CREATE TABLE {name} (id int PRIMARY KEY, n int, big text, other text {more})")
    lab.execute(f"ALTER TABLE {name} ALTER big SET STORAGE EXTERNAL, ALTER other SET STORAGE EXTERNAL")


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(f"INSERT INTO t VALUES (1, 1, {BIG}, {BIG}); UPDATE t SET n = 2", id="earlier in the same batch"),
        pytest.param("UPDATE t SET n = 2", id="only in the copy"),
        pytest.param("UPDATE t SET id = id + 100", id="with a new key"),
        pytest.param("UPDATE t SET id = id + 100; UPDATE t SET n = 5; UPDATE t SET id = id + 100", id="two new keys"),
        pytest.param("UPDATE t SET big = 'short' WHERE id = 51; UPDATE t SET n = 3", id="one of two changed"),
        pytest.param(
            "DELETE FROM t WHERE id = 51; INSERT INTO t VALUES (51, 0, repeat('y', 9000), NULL);"
            "UPDATE t SET n = 7, other = 'o' WHERE id = 51",
            id="of a row deleted between",
        ),
        pytest.param(
            "UPDATE t SET id = 0 WHERE id = 51; UPDATE t SET id = 51 WHERE id = 52; UPDATE t SET id = 52 WHERE id = 0",
            id="of two swapped rows",
        ),
    ],
)
@pytest.mark.parametrize("one_transaction", [True, False])
def test_unchanged_toast_keeps_its_value(lab: Lab, change: str, one_transaction: bool) -> None:
    toasted(lab)
    lab.execute(
        "INSERT INTO t SELECT i, i, repeat('b' || i, 3000), repeat('o' || i, 3000) FROM generate_series(51, 53) i"
    )
    lab.publish()
    pipeline = lab.synced()
    with lab.connect() as connection:
        connection.autocommit = not one_transaction
        for statement in change.split(";"):
            connection.execute(statement.encode())
    lab.assert_equal(pipeline)
