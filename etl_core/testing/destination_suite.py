"""The contract of a destination as tests: subclass `DestinationSuite` and override the fixture `make_destination`.

    class TestMyDestination(DestinationSuite):
        @pytest.fixture
        def make_destination(self, tmp_path):
            return lambda pipeline: MyDestination(tmp_path / "warehouse", pipeline)

`make_destination(pipeline)` gives a destination of that pipeline; within one test all of them share their storage, so a
second call for one pipeline is a restart.
"""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from etl_core.destination.protocol import Destination, GroupDestination, Positions, TableCopy
from etl_core.errors import DestinationUnavailable, EtlError, TableError, WatermarkConflict
from etl_core.lsn import Lsn
from etl_core.schema.table import Column
from etl_core.testing.destination_schemas_suite import SchemaSuite
from etl_core.testing.destination_tables import (
    INT4,
    INT8,
    TEXT,
    Row,
    Rows,
    batch,
    changes,
    contents,
    keys,
    orders,
    partial,
    publish,
    rows,
    stream_at,
    table,
)
from etl_core.testing.destination_values_suite import ValueSuite
from etl_core.testing.destination_watermark_suite import MakeDestination, WatermarkSuite


def _write_and_fail(copy: TableCopy) -> None:
    copy.write(rows(orders(), [(2, "new", "n", 6)]).to_batches()[0])
    raise LookupError("the source is gone")


class ChangesSuite(WatermarkSuite):
    """Copies and changes: what a destination that keeps rows promises, whatever values and columns they have."""

    def test_a_restart_finds_what_was_written(
        self, destination: Destination, make_destination: MakeDestination
    ) -> None:
        publish(destination, orders(), [(1, "new", "n", 5)])
        destination.write(batch(changes(orders(), inserts=[(2, "a", "b", 1)]), expected=100, new=200, stream=200))
        destination.close()
        again = make_destination("shop")
        again.prepare()
        assert again.positions() == Positions({orders().table_id: Lsn(200)}, stream_at(200))
        assert contents(again, orders()) == Counter([(1, "new", "n", 5), (2, "a", "b", 1)])
        again.close()

    def test_pipelines_do_not_see_each_other(self, destination: Destination, make_destination: MakeDestination) -> None:
        other = make_destination("other")
        other.prepare()
        publish(destination, orders())
        publish(other, orders(name="orders_of_other"), watermark=700)
        destination.write(batch(tables=[orders().table_id], expected=100, new=200, stream=200))
        assert destination.positions() == Positions({orders().table_id: Lsn(200)}, stream_at(200))
        assert other.positions() == Positions({orders().table_id: Lsn(700)}, None)
        other.forget(orders().table_id)
        assert destination.positions().tables == {orders().table_id: Lsn(200)}
        other.close()

    def test_a_table_of_another_pipeline_is_not_replaced(
        self, destination: Destination, make_destination: MakeDestination
    ) -> None:
        publish(destination, orders(), [(1, "new", "n", 5)])
        other = make_destination("other")
        other.prepare()
        with pytest.raises(TableError, match="shop"):
            publish(other, orders())
        assert contents(destination, orders()) == Counter([(1, "new", "n", 5)])
        destination.forget(orders().table_id)
        assert publish(other, orders()) == 0
        other.close()

    # Copy

    def test_a_copy_may_be_empty(self, destination: Destination) -> None:
        assert publish(destination, orders()) == 0
        assert contents(destination, orders()) == Counter()

    def test_several_threads_write_one_copy(self, destination: Destination) -> None:
        with destination.copy(orders()) as copy, ThreadPoolExecutor(4) as threads:
            work = [
                threads.submit(
                    copy.write, rows(orders(), [(at * 10 + n, "s", None, n) for n in range(10)]).to_batches()[0]
                )
                for at in range(40)
            ]
            for done in work:
                done.result()
            assert copy.publish(Lsn(1)) == 400
        assert contents(destination, orders()) == Counter((n, "s", None, n % 10) for n in range(400))

    def test_a_copy_is_unseen_until_published_and_replaces_the_table(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "old", "n", 5), (2, "old", "n", 5)])
        with destination.copy(orders()) as copy:
            copy.write(rows(orders(), [(3, "new", "n", 6)]).to_batches()[0])
            assert contents(destination, orders()) == Counter([(1, "old", "n", 5), (2, "old", "n", 5)])
            destination.write(batch(changes(orders(), deletes=[(1,)]), expected=100, new=150))
            copy.publish(Lsn(200))
        assert contents(destination, orders()) == Counter([(3, "new", "n", 6)])
        assert destination.positions().tables == {orders().table_id: Lsn(200)}

    def test_a_copy_left_without_publish_leaves_nothing(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "old", "n", 5)])
        with pytest.raises(LookupError), destination.copy(orders()) as copy:
            _write_and_fail(copy)
        assert publish(destination, orders(), [(3, "newer", "n", 6)]) == 1
        assert contents(destination, orders()) == Counter([(3, "newer", "n", 6)])

    def test_copies_are_published_together_or_not_at_all(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "old", "n", 5)])
        other = orders(16_401, "others")
        if not isinstance(destination, GroupDestination):
            return  # its copies are published one by one
        with destination.copy(orders()) as one, destination.copy(other) as two:
            one.write(rows(orders(), [(2, "new", "n", 5)]).to_batches()[0])
            two.write(rows(other, [(3, "new", "n", 6)]).to_batches()[0])
            with pytest.raises(EtlError):
                destination.publish_together([(one, Lsn(200), 1), (two, Lsn(200), 9)])
            assert destination.positions().tables == {orders().table_id: Lsn(100)}
            assert contents(destination, orders()) == Counter([(1, "old", "n", 5)])
            assert two.publish(Lsn(200), 1) == 1
        with destination.copy(orders()) as one, destination.copy(other) as two:
            one.write(rows(orders(), [(4, "new", "n", 5)]).to_batches()[0])
            assert list(destination.publish_together([(one, Lsn(300), 1), (two, Lsn(300), 0)])) == [1, 0]
        assert destination.positions().tables == {orders().table_id: Lsn(300), other.table_id: Lsn(300)}
        assert contents(destination, orders()) == Counter([(4, "new", "n", 5)])
        assert contents(destination, other) == Counter()

    def test_a_copy_may_bring_another_schema(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "old", "n", 5)])
        narrow = table("orders", Column("amount", TEXT), Column("id", INT8))
        publish(destination, narrow, [("five", 1)], watermark=200)
        assert contents(destination, narrow) == Counter([("five", 1)])

    def test_a_table_created_again_at_the_source_takes_the_place_of_the_old(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "old", "n", 5)])
        again = orders(table_id=99_000)
        destination.forget(orders().table_id)
        publish(destination, again, [(2, "new", "n", 5)], watermark=200)
        assert destination.positions().tables == {again.table_id: Lsn(200)}
        assert contents(destination, again) == Counter([(2, "new", "n", 5)])

    def test_one_copy_of_a_table_at_a_time(self, destination: Destination) -> None:
        with destination.copy(orders()) as first:
            with pytest.raises(DestinationUnavailable), destination.copy(orders()):
                pass
            first.write(rows(orders(), [(1, "a", "b", 1)]).to_batches()[0])
            destination.prepare()
            assert first.publish(Lsn(5)) == 1
        assert contents(destination, orders()) == Counter([(1, "a", "b", 1)])

    # Changes

    @pytest.mark.parametrize(
        ("before", "change", "after"),
        [
            pytest.param(
                [],
                {"inserts": [(1, "a", None, 1), (2, None, "b", 2)]},
                [(1, "a", None, 1), (2, None, "b", 2)],
                id="insert",
            ),
            pytest.param([(1, "a", "b", 1)], {"upserts": [(1, "c", None, 2)]}, [(1, "c", None, 2)], id="update"),
            pytest.param([], {"upserts": [(1, "c", None, 2)]}, [(1, "c", None, 2)], id="upsert of a new key"),
            pytest.param(
                [(1, "a", "b", 1), (2, "a", "b", 1)], {"deletes": [(1,), (3,)]}, [(2, "a", "b", 1)], id="delete"
            ),
            pytest.param(
                [(1, "a", "b", 1)],
                {"deletes": [(1,)], "inserts": [(1, "z", "z", 9)]},
                [(1, "z", "z", 9)],
                id="delete and insert",
            ),
            pytest.param(
                [(1, "a", "b", 1)],
                {"deletes": [(1,)], "upserts": [(2, "a", "b", 1)]},
                [(2, "a", "b", 1)],
                id="key update",
            ),
            pytest.param(
                [(1, "a", "", 1), (2, "b", "", 2)],
                {"upserts": [(1, "b", "", 2), (2, "a", "", 1)]},
                [(1, "b", "", 2), (2, "a", "", 1)],
                id="swap",
            ),
            pytest.param([(1, "a", "b", 1)], {"truncate": True}, [], id="truncate"),
            pytest.param(
                [(1, "a", "b", 1)],
                {"truncate": True, "inserts": [(1, "x", "y", 2)]},
                [(1, "x", "y", 2)],
                id="truncate, then rows",
            ),
            pytest.param([(1, "a", "b", 1)], {}, [(1, "a", "b", 1)], id="nothing"),
        ],
    )
    def test_changes(self, destination: Destination, before: Rows, change: dict[str, Rows], after: list[Row]) -> None:
        publish(destination, orders(), before)
        destination.write(batch(changes(orders(), **change), expected=100, new=200))  # type: ignore[arg-type]
        assert contents(destination, orders()) == Counter(after)

    def test_tables_that_swapped_names_are_copied_again(self, destination: Destination) -> None:
        """One after the other: the rows of the second are put aside, or its watermark goes and it has to be copied."""
        first, second = orders(), orders(16_500, "customers")
        publish(destination, first, [(1, "first", "", 1)])
        publish(destination, second, [(2, "second", "", 2)])
        first, second = replace(first, name=second.name), replace(second, name=first.name)
        publish(destination, first, [(3, "first", "", 3)], watermark=200)
        positions = destination.positions()
        assert {table: positions.tables[table] for table in positions.tables.keys() - positions.aside} == {
            first.table_id: Lsn(200)
        }
        publish(destination, second, [(4, "second", "", 4)], watermark=300)
        assert destination.positions().tables == {first.table_id: Lsn(200), second.table_id: Lsn(300)}
        destination.write(batch(changes(first, inserts=[(5, "first", "", 5)]), expected=200, new=400))
        assert contents(destination, first) == Counter([(3, "first", "", 3), (5, "first", "", 5)])
        assert contents(destination, second) == Counter([(4, "second", "", 4)])

    def test_several_parts_for_one_table_are_applied_in_order(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "b", 1)])
        destination.write(
            batch(
                changes(orders(), deletes=[(1,)], inserts=[(2, "a", "b", 2)]),
                changes(orders(), inserts=[(1, "again", "b", 1)], upserts=[(2, "c", "d", 3)]),
                changes(orders(), deletes=[(1,)], upserts=[(2, "e", "f", 4)]),
                changes(orders(), inserts=[(1, "third", None, 1), (3, "x", None, 0)]),
                changes(orders(), truncate=True, inserts=[(1, "fourth", None, 1), (4, "y", None, 0)]),
                changes(orders(), upserts=[(1, "fifth", None, 1)], deletes=[(4,)]),
                changes(orders(), partials=[partial(orders(), ["status"], {(1,): (6, "moved", 1)})]),
                expected=100,
                new=200,
            )
        )
        assert contents(destination, orders()) == Counter([(6, "fifth", "moved", 1)])

    def test_tables_of_a_batch_are_written_together_or_not_at_all(self, destination: Destination) -> None:
        first, second = orders(), orders(16_500, "customers")
        publish(destination, first)
        publish(destination, second)
        good = changes(first, inserts=[(1, "a", "b", 1)])
        bad = changes(second, partials=[partial(second, ["note"], {(9,): (9, "a", 1)})])
        with pytest.raises(TableError) as caught:
            destination.write(batch(good, bad, expected=100, new=200, stream=200))
        assert caught.value.table == str(second.name)
        assert contents(destination, first) == Counter()
        assert destination.positions() == Positions({first.table_id: Lsn(100), second.table_id: Lsn(100)}, None)
        destination.write(batch(good, changes(second, inserts=[(2, "", "", 2)]), expected=100, new=200))
        assert contents(destination, first) == Counter([(1, "a", "b", 1)])
        assert contents(destination, second) == Counter([(2, "", "", 2)])

    def test_a_conflict_applies_nothing(self, destination: Destination) -> None:
        first, second = orders(), orders(16_500, "customers")
        publish(destination, first)
        publish(destination, second, watermark=120)
        with pytest.raises(WatermarkConflict):
            destination.write(
                batch(
                    changes(first, inserts=[(1, "a", "b", 1)]),
                    changes(second, inserts=[(1, "a", "b", 1)]),
                    expected=100,
                    new=200,
                )
            )
        assert contents(destination, first) == contents(destination, second) == Counter()

    def test_a_composite_key(self, destination: Destination) -> None:
        items = table("items", Column("line", INT4), Column("order", INT8), Column("what", TEXT), key=("line", "order"))
        publish(destination, items, [(1, 10, "a"), (2, 10, "b"), (1, 20, "c"), (2, 20, "d")])
        destination.write(
            batch(
                changes(
                    items,
                    upserts=[(1, 10, "A")],
                    deletes=[(2, 20)],
                    partials=[partial(items, ["what"], {(2, 10): (3, 30)})],
                ),
                expected=100,
                new=200,
            )
        )
        assert contents(destination, items) == Counter([(1, 10, "A"), (1, 20, "c"), (3, 30, "b")])

    def test_a_key_of_all_columns(self, destination: Destination) -> None:
        tags = table("tags", Column("id", INT8), Column("tag", TEXT), key=("id", "tag"))
        publish(destination, tags, [(1, "a"), (1, "b")])
        # A key that is gone may come again, as a number does that is written otherwise.
        part = changes(tags, deletes=[(1, "a"), (1, "b"), (1, "d")], upserts=[(1, "b"), (1, "c")], inserts=[(1, "d")])
        destination.write(batch(part, expected=100, new=200))
        assert contents(destination, tags) == Counter([(1, "b"), (1, "c"), (1, "d")])

    def test_a_table_without_a_key_is_appended_to(self, destination: Destination) -> None:
        log = table("log", Column("line", TEXT), key=())
        publish(destination, log, [("a",), ("a",), (None,)])
        appended = replace(changes(log, inserts=[("a",), (None,)]), deletes=keys(orders()).select([]))
        destination.write(batch(appended, expected=100, new=200))
        assert contents(destination, log) == Counter({("a",): 3, (None,): 2})
        destination.write(batch(changes(log, truncate=True, inserts=[("b",)]), expected=200, new=300))
        assert contents(destination, log) == Counter([("b",)])

    # Unchanged values

    def test_unchanged_values_are_kept(self, destination: Destination) -> None:
        publish(
            destination,
            orders(),
            [(1, "a", "big 1", 1), (2, "b", "big 2", 2), (3, "c", None, 3), (4, "d", "big 4", 4), (5, "e", "big 5", 5)],
        )
        destination.write(
            batch(
                changes(
                    orders(),
                    inserts=[(9, "x", "y", 9)],
                    deletes=[(5,)],
                    partials=[
                        partial(orders(), ["note"], {(1,): (1, "A", 11), (3,): (30, "C", 33)}),
                        partial(orders(), ["status", "note"], {(4,): (4, 44)}),
                        partial(orders(), ["status"], {(2,): (20, "new note", 22)}),
                    ],
                ),
                expected=100,
                new=200,
            )
        )
        assert contents(destination, orders()) == Counter(
            [
                (1, "A", "big 1", 11),
                (30, "C", None, 33),
                (4, "d", "big 4", 44),
                (20, "b", "new note", 22),
                (9, "x", "y", 9),
            ]
        )

    def test_two_rows_that_swap_keys_keep_their_unchanged_values(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "big 1", 1), (2, "b", "big 2", 2)])
        destination.write(
            batch(
                changes(orders(), partials=[partial(orders(), ["note"], {(1,): (2, "a", 1), (2,): (1, "b", 2)})]),
                expected=100,
                new=200,
            )
        )
        assert contents(destination, orders()) == Counter([(2, "a", "big 1", 1), (1, "b", "big 2", 2)])

    def test_a_key_left_by_a_moved_row_may_be_taken(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "big 1", 1)])
        moved = partial(orders(), ["note"], {(1,): (2, "a", 1)})
        destination.write(
            batch(changes(orders(), inserts=[(1, "new", "n", 0)], partials=[moved]), expected=100, new=200)
        )
        assert contents(destination, orders()) == Counter([(2, "a", "big 1", 1), (1, "new", "n", 0)])

    def test_a_missing_origin_row_is_an_error_of_the_table(self, destination: Destination) -> None:
        publish(destination, orders(), [(1, "a", "big 1", 1)])
        lost = partial(orders(), ["note"], {(1,): (1, "a", 1), (7,): (8, "SECRET", 1)})
        with pytest.raises(TableError) as caught:
            destination.write(batch(changes(orders(), partials=[lost]), expected=100, new=200))
        assert caught.value.table == "public.orders"
        assert caught.value.hint
        assert "SECRET" not in str(caught.value)
        assert contents(destination, orders()) == Counter([(1, "a", "big 1", 1)])

    # Reading beside writing

    def test_a_reader_sees_one_state_while_others_write(self, destination: Destination) -> None:
        data = [(n, "s", "n", n) for n in range(150_000)]
        publish(destination, orders(), data)
        reading = destination.read(orders())
        first = next(reading)
        destination.write(batch(changes(orders(), deletes=[(n,) for n in range(0, 150_000, 2)]), expected=100, new=200))
        publish(destination, orders(), [(1, "other", None, 1)], watermark=300)
        seen = first.num_rows + sum(part.num_rows for part in reading)
        assert seen == 150_000
        assert contents(destination, orders()) == Counter([(1, "other", None, 1)])

    def test_copies_and_positions_run_beside_writes(self, destination: Destination) -> None:
        publish(destination, orders())
        stop = threading.Event()

        def look() -> int:
            seen = 0
            while not stop.is_set():
                seen += len(destination.positions().tables) + sum(contents(destination, orders()).values())
            return seen

        def copy_other(number: int) -> int:
            return publish(destination, orders(20_000 + number, f"copy_{number}"), [(1, "a", None, 1)])

        with ThreadPoolExecutor(3) as threads:
            looking = threads.submit(look)
            try:
                copies = [threads.submit(copy_other, number) for number in range(5)]
                for at in range(10):
                    part = changes(orders(), inserts=[(at, "s", None, at)])
                    destination.write(batch(part, expected=100 + at, new=101 + at))
                assert [copy.result() for copy in copies] == [1] * 5
            finally:
                stop.set()
            assert looking.result() > 0
        assert len(destination.positions().tables) == 6
        assert contents(destination, orders()) == Counter((n, "s", None, n) for n in range(10))


class DestinationSuite(ValueSuite, SchemaSuite, ChangesSuite):
    """The whole contract."""
