"""The engine's hints in Dagster's words: they name commands of `etl`, and a Dagster user has jobs and buttons."""

import re

from etl_core.errors import COPIED_AGAIN
from etl_dagster import names

_START_AGAIN = re.compile(
    r"etl teardown(?: \([^)]*\))?(?:, then etl run copies| and etl run copy) every table again(?: behind the swap)?"
)
_TABLE_COMMAND = re.compile(
    r"etl (resync|pause|resume|approve)((?: (?:[\w$]+|\"[^\"]+\")\.(?:[\w$]+|\"[^\"]+\")| TABLE)*)"
)
_WORDS = {
    "etl teardown": "its action teardown",
    "etl run": "the next stream run",
    "etl sync --all": "a materialisation of every table with full_refresh: true",
    "etl sync": "a materialisation",
    "etl stream": "the stream job",
    "etl status": "the sensor's tick",
}
_COMMAND = re.compile("|".join(_WORDS))


def in_dagster(hint: str, pipeline: str | None = None) -> str:
    """`hint` with what to click instead of what to type. `etl doctor` stays: nothing in Dagster does the same."""
    job = "the pipeline's control job" if pipeline is None else f"job {names.control_job_name(pipeline)}"
    hint = hint.replace(
        COPIED_AGAIN, "the sensor copies it by itself, a materialisation does at once; readers keep the old copy"
    )
    hint = _START_AGAIN.sub(f"launch {job} with reset, which has every table copied again behind the swap", hint)
    hint = _TABLE_COMMAND.sub(lambda found: f"launch {job} with {_action(found)}", hint)
    return _COMMAND.sub(lambda found: _WORDS[found[0]], hint)


def sentence(error: Exception, pipeline: str | None = None) -> str:
    """What happened, and what to do about it, in one line."""
    hint = getattr(error, "hint", None)
    return f"{error} → {in_dagster(hint, pipeline)}" if hint else str(error)


def _action(found: re.Match[str]) -> str:
    tables = re.findall(r"TABLE|(?:[\w$]+|\"[^\"]+\")\.(?:[\w$]+|\"[^\"]+\")", found[2])
    listed = ", ".join(f"'{table}'" if '"' in table else table for table in tables)
    return f"{found[1]}: {{tables: [{listed}]}}" if tables else found[1]
