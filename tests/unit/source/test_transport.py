"""What is said of a connection's kind, and what the doctor makes of it."""

from __future__ import annotations

import pytest

from etl_core.source.doctor import check_transport
from etl_core.source.finding import Severity
from etl_core.source.transport import Transport

TLS = ("TLSv1.3", "TLS_AES_256_GCM_SHA384")


@pytest.mark.parametrize(
    ("transport", "said"),
    [
        (Transport("unix", True), "unix socket"),
        (Transport("tcp", False), "TCP without TLS"),
        (Transport("gssapi", False), "TCP with GSSAPI encryption"),
        (Transport("tls", False, *TLS, "verify-full"), "TLSv1.3 (TLS_AES_256_GCM_SHA384), verify-full"),
        (Transport("tls", False, None, None, "require"), "TLS, require"),
    ],
)
def test_how_it_is_said(transport: Transport, said: str) -> None:
    assert str(transport) == said


@pytest.mark.parametrize(
    ("transport", "severity"),
    [
        (Transport("unix", True), Severity.OK),
        (Transport("tcp", True), Severity.OK),
        (Transport("tcp", False), Severity.WARNING),
        (Transport("gssapi", False), Severity.OK),
        (Transport("tls", True, *TLS, "require"), Severity.OK),
        (Transport("tls", False, *TLS, "require"), Severity.NOTE),
        (Transport("tls", False, *TLS, "verify-ca"), Severity.OK),
        (Transport("tls", False, *TLS, "verify-full"), Severity.OK),
    ],
)
def test_what_the_doctor_makes_of_it(transport: Transport, severity: Severity) -> None:
    finding = check_transport(transport)
    assert (finding.check, finding.severity) == ("transport", severity)
    assert severity is Severity.OK or "verify-full" in finding.message
