"""`etl doctor`: what the preflight found, grouped, each with the SQL that mends it."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import partial
from itertools import groupby
from pathlib import Path

from sqlalchemy import make_url

from etl_core.cli.arguments import Arguments
from etl_core.cli.ddl_trigger import ddl_trigger
from etl_core.cli.exit_status import DONE, FAILED
from etl_core.cli.texts import plural, put
from etl_core.control import PipelineControl
from etl_core.destination.doctor import examine_destination
from etl_core.errors import EtlError
from etl_core.identifiers import TableName
from etl_core.replication.catalog_findings import examine_known
from etl_core.replication.followed import names_followed
from etl_core.replication.other_slots import examine_other_slots
from etl_core.replication.type_findings import examine_types
from etl_core.source.connection import Connection
from etl_core.source.doctor import Finding, Severity, examine
from etl_core.state.doctor import examine_state

_ORDER = (Severity.UNSAFE, Severity.WARNING, Severity.NOTE, Severity.OK)


def doctor(pipeline: PipelineControl, arguments: Arguments) -> int:
    if arguments.ddl_trigger is not None:
        return ddl_trigger(pipeline, arguments.ddl_trigger)
    source = pipeline.config.source
    findings = examine(
        source.conninfo(),
        pipeline=pipeline.config.pipeline,
        publication=source.publication,
        selection=source.selection,
        allow_append_only=pipeline.config.allow_append_only,
        names_now=partial(_names_now, pipeline),
    )
    findings += _stream_findings(pipeline)
    findings += examine_destination(pipeline.destination, pipeline.config.destination.type)
    findings += examine_types(pipeline.source, source.selection, pipeline.destination, lambda: pipeline.shapes)
    findings += examine_state(pipeline.config.state.url, pipeline.config.pipeline)
    findings += examine_known(pipeline.config, pipeline.source, pipeline.store)
    findings += examine_other_slots(pipeline.config.pipeline, pipeline.source, pipeline.store)
    for line in finding_lines(findings):
        put(line)
    return FAILED if any(finding.severity is Severity.UNSAFE for finding in findings) else DONE


def _has_store(pipeline: PipelineControl) -> bool:
    """The doctor makes no store."""
    url = make_url(pipeline.config.state.url)
    return url.drivername != "sqlite" or Path(url.database or "").exists()


def _names_now(pipeline: PipelineControl, connection: Connection, tables: Sequence[TableName]) -> Sequence[TableName]:
    """The configured tables by their names of now, of a pipeline that has run before."""
    if _has_store(pipeline):
        with contextlib.suppress(EtlError):
            return names_followed(pipeline.store, pipeline.config.source.selection, connection, tables)
    return tables


def _stream_findings(pipeline: PipelineControl) -> list[Finding]:
    """What ended the stream of a pipeline that has run before, as its state store says."""
    if not _has_store(pipeline):
        return []
    with contextlib.suppress(EtlError):
        error = pipeline.stream_error()
        if error is not None:
            hint = f"; {error.hint}" if error.hint else ""
            return [Finding(Severity.UNSAFE, "stream", f"the stream ended: {error.error}{hint}")]
    return []


def finding_lines(findings: Sequence[Finding]) -> list[str]:
    """The findings, the worst first, those of one check together; SQL on lines of its own, to be copied."""
    lines: list[str] = []
    # Sorting is stable: within a severity, checks stay in the order they were made in.
    ordered = sorted(findings, key=lambda finding: _ORDER.index(finding.severity))
    for (severity, check), group in groupby(ordered, key=lambda finding: (finding.severity, finding.check)):
        heading = f"{severity.upper() if severity is Severity.UNSAFE else severity:<8} {check}"
        for finding in group:
            lines.append(f"{heading:<32} {finding.message}")
            if finding.sql:
                lines += [f"    {line}" for line in f"{finding.sql.rstrip().rstrip(';')};".splitlines()]
            heading = ""
    return [*lines, "", _summary(findings)]


def _summary(findings: Sequence[Finding]) -> str:
    unsafe = sum(finding.severity is Severity.UNSAFE for finding in findings)
    warnings = sum(finding.severity is Severity.WARNING for finding in findings)
    told = f" ({plural(warnings, 'warning')})" if warnings else ""
    if unsafe:
        return f"not safe to replicate: fix the {plural(unsafe, 'finding')} marked UNSAFE first{told}"
    return f"ready to replicate{told}"
