"""What a person asks of a pipeline and decides about its tables: status, pause, resume, resync, reset, teardown.

Apart from `pipeline`, which moves rows: whoever asks for the status loads neither Arrow nor the decoder, and whoever
pauses a table not even the destination.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from etl_core.config import PipelineConfig
from etl_core.destination.protocol import Destination, WaitingDestination
from etl_core.destination.registry import (
    build_destination,
    check_destination,
    check_enums,
    check_write_modes,
    default_types,
    value_range,
)
from etl_core.errors import ConfigError
from etl_core.identifiers import TableId, TableName
from etl_core.policies import RECOPY
from etl_core.replication.copy_estimate import CopyEstimate, read_copy_estimates
from etl_core.replication.hold import StreamHold
from etl_core.replication.ignored_changes import ignored_changes
from etl_core.replication.naming import tables_named
from etl_core.replication.observer import Observer
from etl_core.replication.source import Source
from etl_core.replication.status import PipelineStatus, read_status, stream_error
from etl_core.replication.teardown import Teardown, TeardownPlan
from etl_core.schema.change_id import take_over_id
from etl_core.state.sql_store import open_store
from etl_core.state.store import StateStore, StreamError, TableStatus, TableUpdate
from etl_core.state.table_state import TableState

if TYPE_CHECKING:
    from etl_core.shape.shapes import Shapes


class PipelineControl:
    """One pipeline, without the machinery that moves its rows. A context manager.

    `stop` may be set from anywhere; what waits for the destination then gives up.
    """

    def __init__(
        self,
        config: PipelineConfig,
        *,
        observer: Observer | None = None,
        stop: threading.Event | None = None,
        store: StateStore | None = None,
        destination: Destination | None = None,
    ) -> None:
        """Opens the state store from `config`, unless given. Connects to nothing else yet.

        Raises ConfigError if an option of the destination is wrong.
        """
        if destination is None:
            check_destination(config.destination)
            check_write_modes(config.destination, config.write_modes)
            check_enums(config.destination, config.enum_fields)
        self.config = config
        self.observer = observer or Observer()
        self.stop = stop or threading.Event()
        self.store = store or open_store(config.state.url, config.pipeline)
        self._given_destination = destination
        self.source = Source(
            config.source.conninfo,
            config.pipeline,
            config.source.publication,
            self.store,
            config.source.silence_timeout,
        )
        self._stream_hold = StreamHold(self.source, self.store, self.observer)

    @cached_property
    def destination(self) -> Destination:
        """Built when it is first asked for. Raises ConfigError if its library is missing."""
        destination = self._given_destination or build_destination(self.config.destination, self.config.pipeline)
        if isinstance(destination, WaitingDestination):
            destination.stop_on(self.stop, self.observer.on_waiting)
        return destination

    @cached_property
    def shapes(self) -> Shapes:
        """What tables are at the destination. Raises ConfigError if a table's settings are wrong."""
        from etl_core.shape.shapes import Shapes  # it loads Arrow

        config = self.config
        limits = value_range(config.destination)
        changes = config.policy.schema_changes
        types = {**default_types(config.destination), **config.types}
        return Shapes.checked(config.tables, config.hash_key, config.write_mode, types, limits, changes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the destination, if it was built or given, and the store. Idempotent."""
        if self._given_destination is not None or "destination" in self.__dict__:
            self.destination.close()
        self.store.close()

    # --- tables -----------------------------------------------------------------------------------------------

    def find(self, name: TableName) -> TableStatus:
        """The status of a table by name, its old or its new one. Raises ConfigError naming the known ones."""
        tables = self.store.tables()
        for status in tables:
            if status.name == name:
                return status
        for status in tables_named(self.store, self.source, name):
            return status
        known = ", ".join(str(status.name) for status in tables[:8]) or "none"
        raise ConfigError(f"{name} is not a table of pipeline {self.config.pipeline}", hint=f"its tables: {known}")

    def resync(self, name: TableName) -> None:
        """Has a table copied again, behind the swap: by a running `run`, or at the next one.

        Both tables if two have swapped names: which one is meant is not to be guessed.
        """
        self.find(name)
        for status in tables_named(self.store, self.source, name):
            if status.state is not TableState.INIT or not status.is_requested:
                self._transition(status, TableState.INIT, TableUpdate(is_requested=True))

    def pause(self, name: TableName) -> None:
        """Stops applying a table's changes. Its data stays as it is."""
        status = self.find(name)
        if status.state is not TableState.PAUSED:
            self._transition(status, TableState.PAUSED)

    def resume(self, name: TableName) -> None:
        """Brings a paused or failed table back: it is copied again, as its changes were not kept meanwhile."""
        status = self.find(name)
        if status.state in (TableState.PAUSED, TableState.ERRORED):
            self._transition(status, TableState.INIT, TableUpdate(is_requested=True))

    def waiting(self) -> list[TableStatus]:
        """The tables that wait for a person: to be copied again, or for a change of their schema to be approved."""
        return [status for status in self.store.tables() if status.waits_for is not None]

    def ignored(self) -> dict[TableId, tuple[str, ...]]:
        """The changes of columns that are ignored, of each table with some, as `column note (added)`."""
        return ignored_changes(self.config, self.store)

    def approve(self, status: TableStatus) -> None:
        """Lets a table of `waiting` do what it waits for: exactly what its `error` says, and nothing that came since.

        Where its changes are kept it goes on from there, else it is copied again. Raises StateConflict if it was moved
        on meanwhile, ConfigError if it waits for nothing. A table of `ignored` is copied again as it is at the source.
        """
        if status.waits_for is None:
            stored = self.store.schema(status.table_id)
            if stored is None or stored[1].kept is None:
                raise ConfigError(
                    f"{status.name} does not wait for approval, so nothing was changed",
                    hint="etl approve without a table lists those that wait",
                )
            change = take_over_id(stored[1], stored[1])
            self._transition(status, TableState.INIT, TableUpdate(is_requested=True, approved=change))
            return
        if status.change is None:
            approved = f"{status.approved or ''} {RECOPY}".lstrip()
            update = TableUpdate(error=status.error, attempts=status.attempts, approved=approved)
            self._transition(status, TableState.INIT, update)
            return
        approved = f"{status.approved or ''} {status.change}".lstrip()  # a batch may need the earlier ones, too
        if status.sync_slot is None:
            update = TableUpdate(error=status.error, attempts=status.attempts, approved=approved)
            self._transition(status, TableState.INIT, update)
        else:
            update = TableUpdate(
                snapshot_lsn=status.snapshot_lsn,
                sync_slot=status.sync_slot,
                rows_copied=status.rows_copied,
                attempts=status.attempts,
                approved=approved,
            )
            self._transition(status, TableState.FINISHED_COPY, update)

    def _transition(self, status: TableStatus, to: TableState, update: TableUpdate | None = None) -> TableStatus:
        moved = self.store.transition(status, to, update)
        self.observer.on_state(status.name, to)
        return moved

    # --- status and end ---------------------------------------------------------------------------------------

    def status(self) -> PipelineStatus:
        """What is known, without changing anything; a source or destination out of reach is told, not raised."""
        known = read_status(self.source, self.store, self.destination, self._stream_hold)
        return replace(known, ignored=self.ignored())

    def stream_error(self) -> StreamError | None:
        """What ended the main stream and needs a person, None if it has gone on since."""
        return stream_error(self.store)

    def copy_estimates(self, tables: Sequence[TableStatus]) -> list[CopyEstimate]:
        """What copying these tables again would read, in their order. A source out of reach is not asked."""
        return read_copy_estimates(self.source, self.store, tables)

    def reset(self) -> list[str]:
        """The way on after a lost slot or a restored source: drops the slots, forgets the position; says what dropped.

        Every table that is not paused is then copied again, behind the swap, as after `resync`. Raises SlotInUse while
        a stream runs, SourceUnavailable if the source is out of reach.
        """
        return Teardown(self.source, self.store, self.destination).reset()

    def plan_teardown(self) -> TeardownPlan:
        """What `teardown` would drop on the source, and what it would leave behind."""
        return Teardown(self.source, self.store, self.destination).plan()

    def teardown(self) -> list[str]:
        """Drops the slots and the publication this pipeline created, then forgets its state; says what was dropped.

        The destination keeps its tables. On another cluster nothing is dropped. Raises SlotInUse while a stream runs.
        """
        return Teardown(self.source, self.store, self.destination).run()
