"""`etl verify`: a line for each table, equal or how it differs; exit status 1 unless all are equal.

An interrupted comparison has another exit status: it says nothing about the tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from etl_core.cli.chosen import chosen_tables
from etl_core.cli.exit_status import DONE, FAILED
from etl_core.cli.session import Session
from etl_core.cli.texts import columns, number, plural
from etl_core.replication.compare import Comparison


def verify(session: Session) -> int:
    pipeline, arguments = session.pipeline, session.arguments
    pipeline.prepare()
    named = None
    if arguments.tables:
        named = [status.name for status in chosen_tables(pipeline, arguments, lambda _: True)]
    session.display.begin(f"comparing {plural(len(pipeline.store.tables() if named is None else named), 'table')}")
    comparisons = pipeline.verify(named)
    session.results.extend(comparison_lines(comparisons))
    return DONE if all(comparison.is_equal for comparison in comparisons) else FAILED


def comparison_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """The result as text: a table of the tables, the differences of each below it, and one sentence at the end."""
    if not comparisons:
        return ["no table is replicated yet: etl run"]
    lines = columns([_row(comparison) for comparison in comparisons])
    shown: list[str] = []
    for line, comparison in zip(lines, comparisons, strict=True):
        shown += [line, *(f"    {detail}" for detail in _details(comparison))]
    return [*shown, _summary(comparisons)]


def _row(comparison: Comparison) -> tuple[str, ...]:
    if _was_compared(comparison):
        return (
            str(comparison.table),
            _verdict(comparison),
            plural(comparison.source_rows, "living row" if comparison.is_of_living else "row"),
            f"content {comparison.content}",
            f"at {comparison.lsn}",
        )
    return (str(comparison.table), "not compared", "", "", "")


def _verdict(comparison: Comparison) -> str:
    if comparison.is_incomplete:
        return "incomplete"
    return "equal" if comparison.is_equal else "differs"


def _was_compared(comparison: Comparison) -> bool:
    return bool(comparison.content)


def _details(comparison: Comparison) -> list[str]:
    details = []
    if _was_compared(comparison) and not comparison.is_equal and not comparison.is_incomplete:
        details.append(
            f"{number(comparison.source_rows)} rows in the source, {number(comparison.destination_rows)} in the "
            f"destination: {number(comparison.missing)} missing, {number(comparison.extra)} extra, "
            f"{number(comparison.changed)} changed"
        )
        details += [f"key {_keys(keys.first, keys.last)}: {plural(keys.rows, 'row')}" for keys in comparison.ranges]
    if comparison.is_of_living:
        details.append("deleted rows of the destination are not compared (write_mode soft_delete)")
    if comparison.is_of_view:
        details.append("the rows of the view …_current are compared, not the versions before them (write_mode history)")
    elif comparison.is_of_log:
        details.append("the rows that follow from the log are compared, not the log's own (write_mode append)")
    if comparison.uncompared:
        details.append(
            f"{plural(comparison.uncompared, 'row')}: unchanged TOASTed values that are in earlier rows of the log are"
            " not compared"
        )
    if comparison.problem is not None:
        details.append(comparison.problem)
    return details


def _keys(first: str, last: str) -> str:
    return first if first == last else f"{first} … {last}"


def _summary(comparisons: Sequence[Comparison]) -> str:
    equal = sum(comparison.is_equal for comparison in comparisons)
    if equal == len(comparisons):
        return f"equal: {plural(equal, 'table')}, {plural(sum(c.source_rows for c in comparisons), 'row')}"
    incomplete = sum(comparison.is_incomplete for comparison in comparisons)
    different = sum(_was_compared(comparison) and not comparison.is_equal for comparison in comparisons) - incomplete
    parts = [f"{plural(different, 'table')} differ" + ("s" if different == 1 else "")] if different else []
    if incomplete:
        parts.append(f"{plural(incomplete, 'table')} incomplete")
    if others := len(comparisons) - equal - different - incomplete:
        parts.append(f"{plural(others, 'table')} not compared")
    return f"{', '.join(parts)}, {number(equal)} equal"
