"""`etl destinations [--json]`: what is installed, and what each destination can do."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from etl_core.cli.arguments import Arguments
from etl_core.cli.exit_status import DONE
from etl_core.cli.texts import put
from etl_core.destination.capabilities import CAPABILITIES, MODES, Availability, Described, describe_all


def destinations(arguments: Arguments) -> int:
    """Shows all, also what cannot be used: that is not an error of this command."""
    described = describe_all()
    if arguments.json:
        put(json.dumps({"destinations": [_object(one) for one in described]}, indent=2, ensure_ascii=False))
        return DONE
    for one in described:
        for line in _lines(one):
            put(line)
    return DONE


def _object(one: Described) -> dict[str, object]:
    told = {capability.name: one.answers[capability] for capability in CAPABILITIES}
    return {
        "type": one.name,
        "origin": one.origin,
        "availability": str(one.availability),
        "problem": one.problem,
        "hint": one.hint,
        "url": one.url,
        "can": told,
    }


def _lines(one: Described) -> Iterator[str]:
    if one.availability is Availability.INSTALLED:
        yield f"{one.name}  ({one.origin})" + ("" if one.url is None else f"  {one.url}")
    else:
        yield f"{one.name}  {one.availability}: {' '.join(str(one.problem).split())}"
        if one.hint is not None:
            yield f"  → {one.hint}"
        return
    yield from _listed("write_mode", [", ".join(mode for mode, capability in MODES.items() if one.answers[capability])])
    rest = [(capability.title.replace("`", ""), one.answers[capability]) for capability in CAPABILITIES[len(MODES) :]]
    yield from _listed("can", [title for title, answer in rest if answer is True])
    yield from _listed("cannot", [title for title, answer in rest if answer is False])
    yield from _listed("with", [f"{title}: {answer}" for title, answer in rest if not isinstance(answer, bool | None)])


def _listed(what: str, values: Sequence[str]) -> Iterator[str]:
    if values:
        yield f"  {what}: {'; '.join(values)}"
