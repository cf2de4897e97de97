"""The YAML file: what it may say, and that each error names its line and field and shows no secret."""

from __future__ import annotations

import textwrap
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import make_url

from etl_core.cli.config_faults import find_faults
from etl_core.config import BatchConfig, CopyConfig
from etl_core.config_file import load_config
from etl_core.config_yaml import read_document
from etl_core.destination.registry import find_type
from etl_core.errors import ConfigError
from etl_core.identifiers import TableName

FULL = """\
pipeline: shop                       # names the slot (etl_shop), the store rows, the log lines
source:
  dsn: postgresql://user@host:5432/shop
  publication: shop_pub
  tables: [public.orders, '"Sales"."Order"']
destination: {type: duckdb, path: shop.duckdb}
state: {url: "sqlite:///shop.state.db"}
batch: {max_rows: 5000, max_bytes: 8MiB, max_age: 500ms}
copy: {workers: 2, connections_per_table: 3}
allow_append_only: true
"""

LEAST = """\
pipeline: shop
source: {host: db, publication: p}
destination: {type: memory}
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "etl.yaml"
        file.write_text(textwrap.dedent(text), encoding="utf-8")
        return file

    return write


def refused(file: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    return caught.value


def test_everything(write: Write, tmp_path: Path) -> None:
    config = load_config(write(FULL))
    assert config.pipeline == "shop"
    assert config.source.conninfo() == "user=user dbname=shop host=host port=5432"
    assert config.source.publication == "shop_pub"
    assert config.source.tables == (TableName("public", "orders"), TableName("Sales", "Order"))
    assert config.destination.type == "duckdb"
    assert (config.destination.options, config.destination.folder) == ({"path": "shop.duckdb"}, tmp_path)
    assert config.state.url == f"sqlite:///{tmp_path}/shop.state.db"
    assert config.batch == BatchConfig(max_rows=5000, max_bytes=8 * 2**20, max_age=0.5)
    assert config.copy == CopyConfig(workers=2, connections_per_table=3)
    assert config.allow_append_only is True


def test_defaults(write: Write, tmp_path: Path) -> None:
    config = load_config(write(LEAST))
    assert config.source.tables is None
    assert config.state.url == f"sqlite:///{tmp_path}/shop.state.db"
    assert config.batch == BatchConfig(max_rows=100_000, max_bytes=16 * 2**20, max_age=1.0)
    assert config.copy == CopyConfig(workers=4, connections_per_table=4)
    assert config.allow_append_only is False


def test_libpq_keywords_stand_beside_ours(write: Write) -> None:
    config = load_config(
        write(
            """\
            pipeline: shop
            source:
              host: db
              port: 5433
              database: shop
              user: etl
              sslmode: verify-full
              connect_timeout: 10
              publication: p
            destination: {type: memory}
            """
        )
    )
    assert conninfo_to_dict(config.source.conninfo()) == {
        "host": "db",
        "port": "5433",
        "dbname": "shop",
        "user": "etl",
        "sslmode": "verify-full",
        "connect_timeout": "10",
    }


def test_relative_paths_belong_to_the_files_folder(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("hunter2\n")
    file = write(
        """\
        pipeline: shop
        source: {host: db, publication: p, password_file: secret}
        destination: {type: duckdb, path: out/shop.duckdb}
        state: {url: "sqlite:///state/shop.db"}
        """
    )
    monkeypatch.chdir(tmp_path.parent)
    config = load_config(Path(tmp_path.name) / file.name)
    monkeypatch.chdir("/")
    assert conninfo_to_dict(config.source.conninfo())["password"] == "hunter2"
    read = find_type("duckdb").read_options(config.destination.options, config.destination.folder)
    assert read["path"] == tmp_path / "out/shop.duckdb"
    assert config.state.url == f"sqlite:///{tmp_path}/state/shop.db"


def test_an_absolute_path_stays(write: Write) -> None:
    config = load_config(write(LEAST.replace("{type: memory}", "{type: duckdb, path: /srv/shop.duckdb}")))
    read = find_type("duckdb").read_options(config.destination.options, config.destination.folder)
    assert read["path"] == Path("/srv/shop.duckdb")


def test_options_of_a_destination_keep_their_types(write: Write) -> None:
    config = load_config(
        write(
            LEAST.replace(
                "{type: memory}", "{type: x, number: 1, share: 0.5, fast: true, day: 2026-01-31, list: [a, {b: c}]}"
            )
        )
    )
    assert config.destination.options == {
        "number": 1,
        "share": 0.5,
        "fast": True,
        "day": "2026-01-31",
        "list": ["a", {"b": "c"}],
    }


def test_environment_variables(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOP_HOST", "db")
    monkeypatch.setenv("SHOP_PORT", "5433")
    monkeypatch.setenv("SHOP_PASSWORD", 'p@ss: #"word\\')
    monkeypatch.setenv("ROWS", "7")
    monkeypatch.setenv("APPEND", "true")
    config = load_config(
        write(
            """\
            pipeline: shop
            source:
              host: ${SHOP_HOST}.example.org
              port: ${SHOP_PORT}
              password: ${SHOP_PASSWORD}
              application_name: $${HOME} $5 ${SHOP_HOST}
              publication: p
            destination: {type: x, token: "${SHOP_PASSWORD}", list: ["${SHOP_HOST}"]}
            batch: {max_rows: "${ROWS}"}
            allow_append_only: ${APPEND}
            """
        )
    )
    parameters = conninfo_to_dict(config.source.conninfo())
    assert parameters["host"] == "db.example.org"
    assert parameters["port"] == "5433"
    assert parameters["password"] == 'p@ss: #"word\\'
    assert parameters["application_name"] == "${HOME} $5 db"
    assert config.destination.options == {"token": 'p@ss: #"word\\', "list": ["db"]}
    assert config.batch.max_rows == 7
    assert config.allow_append_only is True


@pytest.mark.parametrize(
    "source",
    [
        "host: db\n  sslrootcert: ca.pem\n  sslkey: keys/me.key\n  sslcert: /abs/me.crt",
        'dsn: "postgresql://db?sslrootcert=ca.pem&sslkey=keys%2Fme.key&sslcert=/abs/me.crt"',
        "dsn: host=db sslrootcert=ca.pem sslkey='keys/me.key' sslcert=/abs/me.crt",
    ],
)
def test_paths_in_connection_strings_belong_to_the_files_folder(write: Write, tmp_path: Path, source: str) -> None:
    text = (
        f"pipeline: shop\nsource:\n  {source}\n  passfile: pw\n  publication: p\ndestination: {{type: x}}\n"
        'state: {url: "postgresql://u:p%40ss@db/state?sslrootcert=ca.pem&sslmode=require"}\n'
    )
    config = load_config(write(text))
    assert conninfo_to_dict(config.source.conninfo()) == {
        "host": "db",
        "sslrootcert": str(tmp_path / "ca.pem"),
        "sslkey": str(tmp_path / "keys/me.key"),
        "sslcert": "/abs/me.crt",
        "passfile": str(tmp_path / "pw"),
    }
    state = make_url(config.state.url)
    assert state.query == {"sslrootcert": str(tmp_path / "ca.pem"), "sslmode": "require"}
    assert state.password == "p@ss"


def test_what_only_looks_like_a_path_stays(write: Write) -> None:
    text = (
        "pipeline: shop\nsource: {host: db, sslrootcert: system, sslkey: 'pkcs11:me', publication: p}\n"
        "destination: {type: x}\n"
    )
    parameters = conninfo_to_dict(load_config(write(text)).source.conninfo())
    assert (parameters["sslrootcert"], parameters["sslkey"]) == ("system", "pkcs11:me")


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("token --for 'a b' $HOME", ["token", "--for", "a b", "$HOME"]),
        ("[token, a b]", ["token", "a b"]),
        ("bin/token a/b", ["{folder}/bin/token", "a/b"]),
        ("[/bin/token]", ["/bin/token"]),
    ],
)
def test_a_password_command_is_arguments(write: Write, tmp_path: Path, command: str, arguments: list[str]) -> None:
    text = (
        "pipeline: shop\n"
        f"source:\n  host: db\n  publication: p\n  silence_timeout: 2m\n  password_command: {command}\n"
        "destination: {type: x}\n"
    )
    source = load_config(write(text)).source
    assert source.password_command == tuple(argument.format(folder=tmp_path) for argument in arguments)
    assert source.silence_timeout == 120.0


# What is wrong (replaced in FULL), the line, the field, a part of the message, a part of the hint.
WRONG = {
    "pipeline name": ("pipeline: shop", "pipeline: Shop-1", 1, "pipeline", "'Shop-1' cannot name", "lower-case"),
    "pipeline misspelt": ("pipeline: shop", "pipline: shop", 1, "pipline", "is unknown", "did you mean pipeline?"),
    "unknown section": ("batch:", "batches:", 8, "batches", "is unknown", "did you mean batch?"),
    "unknown and nothing like it": ("copy:", "xyz:", 9, "xyz", "is unknown", "known here: pipeline, source,"),
    "removed": (
        "copy:",
        "unknown_types_to_bytes:",
        9,
        "unknown_types_to_bytes",
        "is unknown",
        "types: {unknown: bytes}",
    ),
    "unknown field": ("workers", "worker", 9, "copy.worker", "is unknown", "did you mean workers?"),
    "unknown keyword": ("publication:", "sslmod: x\n  publication:", 4, "source.sslmod", "nor a conn", "sslmode?"),
    "publication missing": ("  publication: shop_pub\n", "", 2, "source.publication", "is missing", "created for"),
    "publication misspelt": ("publication:", "publicaton:", 4, "source.publicaton", "is unknown", "mean publication?"),
    "text expected": ("shop_pub", "17", 4, "source.publication", "must be text, not a number", "quotes"),
    "yes is not text": ("shop_pub", "yes", 4, "source.publication", "must be text, not true or false", "quotes"),
    "list expected": ('[public.orders, \'"Sales"."Order"\']', "x", 5, "source.tables", "must be a list, not text", ""),
    "not a table": ("public.orders", "a.b.c", 5, "source.tables[0]", "'a.b.c' is not a table name", "namespace.table"),
    "no tables": ('[public.orders, \'"Sales"."Order"\']', "[]", 5, "source.tables", "is empty", "leave it out"),
    "duplicate table": ("[public.orders,", "[orders,\n  public.Orders,", 6, "source.tables[1]", "listed twice", ""),
    "mapping expected": ("{type: duckdb, path: shop.duckdb}", "duckdb", 6, "destination", "must be a mapping", ""),
    "type missing": ("type: duckdb, ", "", 6, "destination.type", "is missing", ""),
    "no value": ("{workers: 2, connections_per_table: 3}", "", 9, "copy", "has no value", "remove the line"),
    "duplicate key": ("copy:", "batch:", 9, "batch", "stands in line 8 too", ""),
    "duplicate inner key": ("workers: 2", "workers: 2, workers: 3", 9, "copy.workers", "stands in line 9 too", ""),
    "whole number expected": ("max_rows: 5000", "max_rows: 5.5", 8, "batch.max_rows", "must be a whole number", ""),
    "true is no number": ("max_rows: 5000", "max_rows: true", 8, "batch.max_rows", "must be a whole number", ""),
    "too small": ("max_rows: 5000", "max_rows: 0", 8, "batch.max_rows", "greater than 0", ""),
    "not a size": ("8MiB", "8 apples", 8, "batch.max_bytes", "'8 apples' is not a size", "64MiB"),
    "not a duration": ("500ms", "soon", 8, "batch.max_age", "'soon' is not a duration", "500ms"),
    "list for a duration": ("500ms", "[1]", 8, "batch.max_age", "must be a number with a unit, not a list", ""),
    "flag expected": ("only: true", "only: 0", 10, "allow_append_only", "must be true or false", ""),
    "port expected": (
        "dsn: postgresql://user@host:5432/shop",
        "host: db\n  port: x",
        4,
        "source.port",
        "must be a whole number",
        "",
    ),
    "said twice": ("publication:", "host: db\n  publication:", 4, "source.host", "is in source.dsn too", "one of"),
    "unset variable": ("user@host", "${ETL_UNSET}@host", 3, "source.dsn", "ETL_UNSET is not set", "export ETL_UNSET"),
    "nameless variable": ("user@host", "${a b}@host", 3, "source.dsn", "without the name", "$${"),
    "state url": ("sqlite:///shop.state.db", "mysql://x/y", 7, "state.url", "is not the URL", "sqlite:///"),
    "duplicate deep key": ("shop.duckdb", "{a: 1, a: 2}", 6, "destination.path", "has a key twice", ""),
    "number as key": ("workers: 2", "2: 2", 9, None, "copy: a key must be text", ""),
    "unknown tag": ("shop_pub", "!x shop_pub", 4, "source.publication", "YAML tag", "quotes"),
    "tag that lies": ("workers: 2", "workers: !!int x", 9, "copy.workers", "YAML tag", ""),
    "unclosed bracket": ("3}", "3", 10, None, "not valid YAML", ""),
    "tab": ("  publication", "\tpublication", 4, None, "not valid YAML", ""),
    "unquoted variable in braces": ("shop.duckdb", "${X}/a", 6, None, "not valid YAML", "quotes"),
    "alias": ("shop_pub", "*shop_pub", 4, None, "aliases are not supported", "quotes"),
    "anchor": ("shop_pub", "&a shop_pub", 4, None, "aliases are not supported", "quotes"),
    "control character": ("shop_pub", "shop\x07", 4, None, "a character that YAML does not allow", ""),
    "table column": (
        "copy:",
        "tables:\n  public.users:\n    columns:\n      mask: [a,\n        a]\ncopy:",
        13,
        "tables.public.users.columns.mask[1]",
        "column a is listed twice",
        "",
    ),
    "table setting": (
        "copy:",
        "tables:\n  'a.*':\n    colums: {}\ncopy:",
        11,
        "tables.a.*.colums",
        "is unknown",
        "did you mean columns?",
    ),
    "table pattern": ("copy:", "tables:\n  a.b.c: {}\ncopy:", 10, "tables.a.b.c", "not a table name", "namespace"),
    "short hash key": ("copy:", "hash_key: x\ncopy:", 9, "hash_key", "must have 16 characters", "openssl"),
    "two documents": ("copy:", "---\ncopy:", 9, None, "not valid YAML", ""),
}


@pytest.mark.parametrize(("old", "new", "line", "field", "what", "hint"), WRONG.values(), ids=WRONG.keys())
def test_an_error_names_line_and_field(
    write: Write, old: str, new: str, line: int, field: str | None, what: str, hint: str
) -> None:
    assert FULL.count(old) == 1 or old in ("copy:", "batch:")
    file = write(FULL.replace(old, new, 1))
    error = refused(file)
    assert (error.line, error.field) == (line, field)
    assert str(error).startswith(f"{file}:{line}: " + (f"{field}: " if field else ""))
    assert what in str(error)
    assert hint in (error.hint or "")
    assert error.__context__ is None
    found = [str(fault) for fault in faults_of(file)]
    assert str(error) in found
    assert len(found) == 1 or field == "destination.path"  # a path that is a mapping with a key twice has two


def faults_of(file: Path) -> Sequence[ConfigError]:
    """What `etl config check` names."""
    try:
        return find_faults(read_document(file))[1]
    except ConfigError as error:
        return [error]


def test_the_message_is_one_line_to_click(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(FULL.replace("shop_pub", "17"))
    monkeypatch.chdir(file.parent)
    assert str(refused(Path("etl.yaml"))) == "etl.yaml:4: source.publication: must be text, not a number"


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "text\n"])
def test_a_file_without_a_mapping(write: Write, text: str) -> None:
    assert "must hold a mapping" in str(refused(write(text)))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "there is no such file" in str(refused(tmp_path / "none.yaml"))
    assert "cannot be read" in str(refused(tmp_path))
    (tmp_path / "latin").write_bytes(b"pipeline: \xff")
    assert "is not UTF-8" in str(refused(tmp_path / "latin"))


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(before="{", after="}", shape="password: %s")
@example(before="[{", after=": }]", shape="password: %s")
@example(before="!", after="!x y", shape="password: %s")
@given(
    before=st.text(st.sampled_from("a1 :@/?#&*!%'\"\\[]{}|>-,`\t"), max_size=5),
    after=st.text(st.sampled_from("a1 :@/?#&*!%'\"\\[]{}|>-,`\t"), max_size=5),
    shape=st.sampled_from(
        ["password: %s", "dsn: postgresql://u:%s@db/x", "dsn: host=db password=%s", "sslpassword: %s"]
    ),
)
def test_a_password_is_in_no_error(tmp_path: Path, before: str, after: str, shape: str) -> None:
    """However badly a password is quoted, what comes out does not show it."""
    # A comment may leave a good URL: postgresql://u:@hunter2, postgresql://u:/hunter2
    assume("#" not in after or not {"@", "/", "?"} & set(before))
    file = tmp_path / "etl.yaml"
    file.write_text(
        "pipeline: shop\ndestination: {type: x}\nsource:\n  publication: p\n  " + shape % (before + "hunter2" + after)
    )
    try:
        shown = repr(load_config(file))
    except ConfigError as error:
        shown = "".join(traceback.format_exception(error)) + str(error.hint)
    assert "hunter2" not in shown
