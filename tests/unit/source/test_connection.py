"""What connections send, and what they never show."""

from __future__ import annotations

import pytest
from psycopg.conninfo import make_conninfo

from etl_core.errors import ConfigError
from etl_core.source.connection import SESSION_SETTINGS, connection_parameters


def test_pinned_settings_come_after_the_persons_own_options() -> None:
    dsn = make_conninfo("host=h", options="-c work_mem=1GB -c DateStyle=SQL")
    options = connection_parameters(dsn, pipeline="shop", role="copy")["options"]
    assert options.startswith("-c work_mem=1GB -c DateStyle=SQL -c ")
    assert options.index("DateStyle=SQL") < options.index("DateStyle=ISO")
    assert all(f"-c {name}={value}" in options for name, value in SESSION_SETTINGS.items())


def test_options_of_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=1GB")
    assert connection_parameters("", pipeline="p", role="r")["options"].startswith("-c work_mem=1GB -c ")


def test_no_setting_holds_a_space() -> None:
    assert not [value for value in SESSION_SETTINGS.values() if " " in value]


def test_the_persons_own_timeouts_win_and_the_rest_is_ours() -> None:
    params = connection_parameters(
        "host=h connect_timeout=3 application_name=theirs client_encoding=LATIN1", pipeline="shop", role="stream"
    )
    assert (params["connect_timeout"], params["tcp_user_timeout"]) == ("3", "60000")
    assert (params["application_name"], params["client_encoding"]) == ("etl_shop_stream", "UTF8")


def test_only_a_replication_connection_replicates() -> None:
    dsn = "host=h replication=true"
    assert connection_parameters(dsn, pipeline="p", role="r", replication=True)["replication"] == "database"
    assert "replication" not in connection_parameters(dsn, pipeline="p", role="r")


@pytest.mark.parametrize(
    "dsn",
    [
        "host=h password=sec ret",
        "host=h password='secret",
        "postgresql://u:secret@[::1/db",
        "postgresql://u:secret@h/db?passwort=secret",
        "postgresql://u:pass@secret@h/db",
        "postgresql://u:pa/ss@secret@h/db",
    ],
)
def test_a_connection_string_that_cannot_be_read_is_not_shown(dsn: str) -> None:
    with pytest.raises(ConfigError) as caught:
        connection_parameters(dsn, pipeline="p", role="r")
    text = f"{caught.value} {caught.value.hint} {caught.value.__cause__}"
    assert "secret" not in text
    assert "sec" not in text.replace("second", "")
    assert caught.value.field == "source.dsn"
