"""Automation conditions for what is built on replicated tables."""

import dagster as dg


def on_replicated_change() -> dg.AutomationCondition:
    """Requests an asset when an upstream table has changed: when its data version, the table's LSN, is a new one.

    The heartbeat of a quiet table, which repeats the data version, requests nothing. Nor is anything requested while an
    upstream is missing or the asset is being materialised; a change that arrives meanwhile is not forgotten, but
    requests the asset again afterwards, as it may have come after the asset read its input.
    """
    changed = dg.AutomationCondition.any_deps_match(dg.AutomationCondition.data_version_changed())
    # `since_last_handled` would forget a change at the end of the run it came during.
    handled = dg.AutomationCondition.newly_requested() & ~changed
    return (
        changed.since(handled | dg.AutomationCondition.initial_evaluation())
        & ~dg.AutomationCondition.any_deps_missing()
        & ~dg.AutomationCondition.in_progress()
    ).with_label("on_replicated_change")
