"""The engine's errors as Dagster shows them."""

from collections.abc import Mapping

import dagster as dg

from etl_core.errors import EtlError, PermanentError
from etl_core.identifiers import TableName
from etl_dagster.hints import in_dagster, sentence

_SHOWN = 8


def failure_of(error: EtlError, pipeline: str | None = None) -> dg.Failure:
    """The failure that says what happened and what to do, both in its message: alerts show nothing else.

    What to do is its metadata `hint` as well. It is retried unless that cannot help.
    """
    return dg.Failure(
        description=sentence(error, pipeline),
        metadata={"hint": in_dagster(error.hint, pipeline)} if error.hint else None,
        allow_retries=not isinstance(error, PermanentError),
    )


def failure_of_tables(failed: Mapping[TableName, EtlError], of: int, pipeline: str) -> dg.Failure:
    """The failure of a step of `of` tables, in which these failed: what happened to each, and what to do.

    Of one table alone that of its error. Of several it is not retried: the step has done so, and the others are done.
    """
    errors = list(failed.values())
    if of == 1:
        return failure_of(errors[0], pipeline)
    tables: dict[tuple[str, str], list[str]] = {}
    for table, error in failed.items():
        tables.setdefault((str(error), sentence(error, pipeline)), []).append(str(table))
    told = [
        said if names[0] in error and len(names) == 1 else f"{_listed(names)}: {said}"
        for (error, said), names in tables.items()
    ]
    hints = list(dict.fromkeys(in_dagster(error.hint, pipeline) for error in errors if error.hint))
    return dg.Failure(
        description=f"{len(failed)} of {of} tables failed: " + "; ".join(told[:_SHOWN]),
        metadata={
            **({"hint": "\n".join(hints[:_SHOWN])} if hints else {}),
            "tables": "\n".join(map(str, failed)),
        },
        allow_retries=False,
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
