"""Automation conditions for what is built on replicated tables."""

import dagster as dg

from etl_core.config_values import parse_duration
from etl_core.errors import ConfigError

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def on_replicated_change(*, every: str | None = None) -> dg.AutomationCondition:
    """Requests an asset when an upstream table has changed: when its data version, the table's LSN, is a new one.

    The heartbeat of a quiet table, which repeats the data version, requests nothing. Nor is anything requested while an
    upstream is missing or the asset is being materialised; a change that arrives meanwhile is not forgotten, but
    requests the asset again afterwards, as it may have come after the asset read its input.

    With `every`, such as `10m` or `1h`, the asset is requested once at most in each such time, at its end, if anything
    has changed in it. The times are those of the clock in UTC (`10m`: at 00, 10, 20 … minutes past), so `every` is a
    number of minutes that divides an hour, of hours that divides a day, or `24h`. Raises
    dg.DagsterInvalidDefinitionError for another one.
    """
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    # `since_last_handled` would forget a change at the end of the run it came during.
    handled = dg.AutomationCondition.newly_requested() & ~changed
    due: dg.AutomationCondition = changed.since(handled | dg.AutomationCondition.initial_evaluation())
    label = "on_replicated_change"
    if every is not None:
        # Only Dagster's own conditions: its sensor evaluates no others, and says nothing about those it leaves out.
        time_is_over = dg.AutomationCondition.cron_tick_passed(_cron(every))
        is_over = due & time_is_over
        due = is_over.since(dg.AutomationCondition.newly_requested() & ~is_over)
        label += f"(every={every})"
    return (due & ~dg.AutomationCondition.any_deps_missing() & ~dg.AutomationCondition.in_progress()).with_label(label)


def _cron(every: str) -> str:
    """The cron schedule whose ticks are `every` apart."""
    try:
        seconds = parse_duration(every)
    except ConfigError as error:
        raise dg.DagsterInvalidDefinitionError(f"every: {error}; {error.hint}") from None
    if seconds > 0:
        if seconds % _MINUTE == 0 and _HOUR % seconds == 0:
            return f"*/{seconds // _MINUTE:.0f} * * * *" if seconds < _HOUR else "0 * * * *"
        if seconds % _HOUR == 0 and _DAY % seconds == 0:
            return f"0 */{seconds // _HOUR:.0f} * * *" if seconds < _DAY else "0 0 * * *"
    raise dg.DagsterInvalidDefinitionError(
        f"every: {every!r} is neither minutes that divide an hour nor hours that divide a day; write for example 10m,"
        " 1h, 6h or 24h"
    )
