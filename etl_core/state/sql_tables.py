"""The tables of the SQL stores as queries see them, and how their values are kept.

They stand in schema `etl` on PostgreSQL and with the prefix `etl_` in SQLite. `sql_migrations` creates them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Boolean, DateTime, Dialect, Float, Integer, TableClause, Text, column, table
from sqlalchemy.types import TypeDecorator, TypeEngine

from etl_core.lsn import Lsn
from etl_core.state.table_state import TableState


class LsnText(TypeDecorator[Lsn]):
    """An LSN as `00000016/B374D848`: text of fixed width, because SQLite's integers are signed 64 bits.

    Byte order is LSN order (the column is `COLLATE "C"` on PostgreSQL), and `::pg_lsn` reads it.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: Lsn | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else f"{value >> 32:08X}/{value & 0xFFFFFFFF:08X}"

    def process_result_value(self, value: str | None, dialect: Dialect) -> Lsn | None:  # noqa: ARG002
        return None if value is None else Lsn.parse(value)


class UtcTime(TypeDecorator[datetime]):
    """An aware time: `timestamptz` on PostgreSQL, text in UTC (whose order is the order in time) in SQLite."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a time in the state store needs a time zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class StateCode(TypeDecorator[TableState]):
    """A table's state by PostgreSQL's one-letter code."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: TableState | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        return None if value is None else value.value

    def process_result_value(self, value: str | None, dialect: Dialect) -> TableState | None:  # noqa: ARG002
        return None if value is None else TableState(value)


class Sentence(TypeDecorator[str]):
    """An error or a hint. What a database's text cannot hold is escaped: reporting an error must not fail."""

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        if value is None:
            return None
        return value.encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", "\\x00")


@dataclass(frozen=True, slots=True)
class Tables:
    """One attribute per table; every table but `migrations` has the column `pipeline`."""

    migrations: TableClause
    sources: TableClause
    tables: TableClause
    history: TableClause
    schemas: TableClause
    progress: TableClause
    slots: TableClause
    publications: TableClause
    holds: TableClause
    copy_offers: TableClause
    copy_ranges: TableClause
    stream_errors: TableClause
    fingerprints: TableClause
    shapes: TableClause
    selected_names: TableClause

    def of_pipeline(self) -> Iterator[TableClause]:
        """The tables whose rows belong to one pipeline."""
        return (getattr(self, field.name) for field in fields(self) if field.name != "migrations")


def build_tables(dialect: str) -> Tables:
    """The tables under their names in `dialect`: "postgresql" or "sqlite"."""

    def build(name: str, /, **columns: TypeEngine[Any]) -> TableClause:
        parts = [column(key, type_) for key, type_ in columns.items()]
        if dialect == "postgresql":
            return table(name, *parts, schema="etl")
        return table(f"etl_{name}", *parts)

    return Tables(
        migrations=build("migrations", version=Integer(), applied_at=UtcTime()),
        sources=build(
            "sources",
            pipeline=Text(),
            system_identifier=Text(),
            timeline=BigInteger(),
            slot_name=Text(),
            slot_lsn=LsnText(),
            database=Text(),
            database_oid=BigInteger(),
            address=Text(),
        ),
        tables=build(
            "tables",
            pipeline=Text(),
            table_id=BigInteger(),
            namespace=Text(),
            name=Text(),
            state=StateCode(),
            version=BigInteger(),
            snapshot_lsn=LsnText(),
            sync_slot=Text(),
            rows_copied=BigInteger(),
            error=Sentence(),
            hint=Sentence(),
            attempts=Integer(),
            retry_at=UtcTime(),
            updated_at=UtcTime(),
            is_requested=Boolean(),
            waits_for=Text(),
            change=Text(),
            approved=Text(),
        ),
        history=build(
            "history",
            pipeline=Text(),
            table_id=BigInteger(),
            version=BigInteger(),
            from_state=StateCode(),
            to_state=StateCode(),
            at=UtcTime(),
            error=Sentence(),
        ),
        schemas=build(
            "schemas",
            pipeline=Text(),
            table_id=BigInteger(),
            version=Integer(),
            lsn=LsnText(),
            schema_json=Text(),
            saved_at=UtcTime(),
        ),
        progress=build(
            "progress",
            pipeline=Text(),
            flushed_lsn=LsnText(),
            commit_time=UtcTime(),
            rows=BigInteger(),
            rows_per_second=Float(),
            lag_seconds=Float(),
            updated_at=UtcTime(),
            written_lsn=LsnText(),
            claim=Text(),
        ),
        slots=build(
            "slots",
            pipeline=Text(),
            name=Text(),
            table_id=BigInteger(),
            created_at=UtcTime(),
            system_identifier=Text(),
        ),
        publications=build("publications", pipeline=Text(), owned=Boolean(), oid=BigInteger()),
        holds=build("holds", pipeline=Text(), owner=Text(), expires_at=UtcTime(), lsn=LsnText(), reached=LsnText()),
        copy_offers=build(
            "copy_offers",
            pipeline=Text(),
            table_id=BigInteger(),
            token=Text(),
            snapshot_name=Text(),
            snapshot_lsn=LsnText(),
            layout=Text(),
            address=Text(),
            is_over=Boolean(),
        ),
        copy_ranges=build(
            "copy_ranges",
            pipeline=Text(),
            table_id=BigInteger(),
            number=Integer(),
            namespace=Text(),
            name=Text(),
            first_block=BigInteger(),
            end_block=BigInteger(),
            size=BigInteger(),
            taker=BigInteger(),
            rows=BigInteger(),
            receipt=Text(),
        ),
        stream_errors=build(
            "stream_errors", pipeline=Text(), error=Sentence(), hint=Sentence(), at=UtcTime(), is_permanent=Boolean()
        ),
        fingerprints=build(
            "fingerprints",
            pipeline=Text(),
            table_id=BigInteger(),
            lsn=LsnText(),
            fingerprint_json=Text(),
            has_gap=Boolean(),
        ),
        shapes=build("shapes", pipeline=Text(), table_id=BigInteger(), shape_json=Text()),
        selected_names=build("selected_names", pipeline=Text(), table_id=BigInteger(), namespace=Text(), name=Text()),
    )
