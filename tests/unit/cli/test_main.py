"""From a configuration that is wrong to the exit status: nothing of this needs a database, and nothing is touched."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from etl_core.cli import main
from etl_core.cli.failures import report
from etl_core.config_file import locate
from etl_core.destination.bigquery.connection import Clients
from etl_core.destination.bigquery.options import BigQueryOptions
from etl_core.errors import ConfigError

GOOD = """\
pipeline: shop
source:
  dsn: postgresql://etl:hunter2@127.0.0.1:1/shop
  publication: shop_pub
destination: {type: duckdb, path: shop.duckdb}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "etl.yaml").write_text(GOOD)
    return tmp_path


@pytest.mark.parametrize("command", ["doctor", "sync", "stream", "run", "status", "verify", "resync x", "teardown"])
@pytest.mark.parametrize(
    ("old", "new", "sentence", "hint"),
    [
        ("publication:", "publicaton:", "etl.yaml:4: source.publicaton: is unknown", "did you mean"),
        ("pipeline: shop", "pipeline: My Shop", "etl.yaml:1: pipeline: 'My Shop' cannot name a pipeline", "use up to"),
        (
            "type: duckdb",
            "type: duckbd",
            "etl.yaml:5: destination.type: there is no destination type",
            "did you mean duckdb",
        ),
        ("path: shop.duckdb", "file: x", "etl.yaml:5: destination.file: destination type duckdb has no", "remove it"),
        ("shop.duckdb}", "shop.duckdb", "etl.yaml:6: not valid YAML", None),
    ],
)
def test_a_wrong_configuration_names_line_and_field(
    folder: Path, command: str, old: str, new: str, sentence: str, hint: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "etl.yaml").write_text(GOOD.replace(old, new))
    assert main(command.split()) == 2
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert lines[0].startswith(f"etl: {sentence}")
    assert len(lines) == (2 if hint else 1)
    assert hint is None or hint in lines[1]
    assert "hunter2" not in said.err
    assert said.out == ""
    assert [path.name for path in folder.iterdir()] == ["etl.yaml"]


def test_a_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "-c", str(tmp_path / "nope.yaml")]) == 2
    assert capsys.readouterr().err == (
        f"etl: {tmp_path / 'nope.yaml'}: there is no such file\n  → name the configuration file with -c\n"
    )


def test_status_before_the_first_run_needs_no_source(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status"]) == 0
    assert "nothing has been replicated yet: etl run" in capsys.readouterr().out


def test_status_fails_if_nothing_can_be_known(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "shop.state.db").write_bytes(b"this is no database" * 500)
    assert main(["status"]) == 1
    assert "is not a readable SQLite file" in capsys.readouterr().err


def test_a_source_that_is_not_there(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sync"]) == 1
    sentence, hint = capsys.readouterr().err.splitlines()
    assert sentence.startswith("etl: cannot connect to 127.0.0.1:1, database shop")
    assert hint.startswith("  → check that the server runs")


def failure() -> Exception:
    try:
        int("4711-secret")
    except ValueError as error:
        return error
    raise AssertionError


def test_an_unexpected_error_is_one_sentence_without_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(failure(), verbose=False) == 1
    said = capsys.readouterr().err
    assert said == "etl: unexpected ValueError\n  → this is a defect; run with -v for the traceback\n"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/spool/x"), "etl: a disk is full: /spool/x\n"),
        (OSError("[Errno 28] Error writing bytes to file. No space left on device"), "etl: a disk is full\n"),
        (OSError(errno.EMFILE, "Too many open files"), "etl: too many files are open\n"),
        (PermissionError(errno.EACCES, "Permission denied", "/key"), "etl: this user may not use a file: /key\n"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/key"), "etl: a file cannot be used: /key (No such file)\n"),
        (MemoryError(), "etl: this machine has no memory left\n"),
    ],
)
def test_what_the_machine_lacks_is_no_defect(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(error, verbose=False) == 1
    said = capsys.readouterr().err
    assert said.startswith(sentence)
    assert "defect" not in said


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (
            None,
            "the key file cannot be read: key.json (No such file or directory)",
        ),
        ("hunter2", "key.json is not the key of a service account"),
        (
            '{"type": "service_account", "private_key": "hunter2"}',
            "key.json is not the key of a service account",
        ),
    ],
)
def test_a_key_file_that_cannot_be_used_is_named(
    folder: Path, content: str | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    options = BigQueryOptions("p", "d", credentials="key.json")
    if content is not None:
        (folder / "key.json").write_text(content)
    with pytest.raises(ConfigError) as refused:
        Clients(options).rest()
    (folder / "etl.yaml").write_text(GOOD.replace("{type: duckdb, path: shop.duckdb}", "{credentials: key.json}"))
    assert report(locate(refused.value, Path("etl.yaml")), verbose=False) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"etl: etl.yaml:5: destination.credentials: {sentence}\n")
    assert "hunter2" not in said


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(failure(), verbose=True) == 1
    assert "Traceback (most recent call last)" in capsys.readouterr().err
