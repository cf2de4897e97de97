"""`etl config check`: every fault at once, each where it is; and the JSON Schema, which editors are given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from etl_core.cli import main
from etl_core.cli.config_faults import find_faults
from etl_core.config_yaml import read_document
from etl_core.errors import ConfigError

DOCS = Path(__file__).parents[3] / "docs"
FAULTS = """\
pipeline: My Shop
source:
  dsn: postgresql://etl:hunter2@db/shop?nosuch=1
  port: x
  publicaton: shop_pub
  sslmod: require
  tables: [a.b.c, public.orders, orders, x..y]
destination: {type: duckdb, pth: 17}
state: {ulr: sqlite:///x.db}
batch: {max_rows: 0, max_age: soon, max_rows: 5}
copy: {workers: 2, workrs: 3}
hash_key: short
write_mode: mirrored
types: {numerik: auto, json: jsonb}
tables:
  public.users:
    colums: {exclude: [a]}
    recopy: never
    columns: {exclude: [a, 5, a], hsah: [b], mask: "${NO_SUCH_VARIABLE}"}
nosuch: 1
batch: {max_bytes: 1}
"""
FOUND = """\
1: pipeline: 'My Shop' cannot name a pipeline
3: source.dsn: is not a connection string that libpq understands
4: source.port: must be a whole number, not text
5: source.publicaton: is unknown
6: source.sslmod: is unknown: neither an option of source nor a connection keyword of libpq
7: source.tables[0]: 'a.b.c' is not a table name
7: source.tables[2]: orders is listed twice
7: source.tables[3]: 'x..y' is not a table name
8: destination.pth: destination type duckdb has no option 'pth'
8: destination.path: must be text, not a number
9: state.ulr: is unknown
10: batch.max_rows: stands in line 10 too
10: batch.max_rows: must be greater than 0, not 0
10: batch.max_age: 'soon' is not a duration
11: copy.workrs: is unknown
12: hash_key: must have 16 characters or more
13: write_mode: is 'mirrored'
14: types.numerik: is unknown
14: types.json: is 'jsonb'
17: tables.public.users.colums: is unknown
18: tables.public.users.recopy: is 'never'
19: tables.public.users.columns.mask: the environment variable NO_SUCH_VARIABLE is not set
19: tables.public.users.columns.exclude[1]: must be text, not a number
19: tables.public.users.columns.exclude[2]: column a is listed twice
19: tables.public.users.columns.hsah: is unknown
20: nosuch: is unknown
21: batch: stands in line 10 too
"""


def test_every_fault_is_named_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_SUCH_VARIABLE", raising=False)
    Path("etl.yaml").write_text(FAULTS, encoding="utf-8")
    assert main(["config", "check"]) == 2
    told = capsys.readouterr()
    lines = [line.removeprefix("etl: etl.yaml:") for line in told.err.splitlines() if line.startswith("etl: etl.yaml:")]
    assert sorted(lines) == sorted(FOUND.splitlines())
    assert [int(line.partition(":")[0]) for line in lines] == sorted(int(line.partition(":")[0]) for line in lines)
    assert told.err.splitlines()[-1] == f"etl: etl.yaml has {len(lines)} faults"
    assert (told.out, "hunter2" in told.err) == ("", False)

    Path("shop.yaml").write_text(
        "pipeline: shop\nsource: {host: db, publication: p}\ndestination: duckdb:shop.duckdb\n", encoding="utf-8"
    )
    assert main(["config", "check", "shop.yaml"]) == 0
    assert capsys.readouterr().out == "shop.yaml is valid: pipeline shop into duckdb\n"
    assert main(["config", "check", "none.yaml"]) == 2
    assert "none.yaml: there is no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "faults"),
    [
        ("destination: {type: duckdbb, path: 17}", ["destination.type"]),
        ("destination: {path: x}", ["destination.type"]),
        (
            "destination: {type: duckdb, storage_version: [], fast: 1}",
            ["destination.path", "destination.fast", "destination.storage_version"],
        ),
        ("destination: mysql:x", ["destination.type"]),
        ("destination: duckdb://x", ["destination"]),
        ("destination: 17", ["destination"]),
        ("destination: {type: iceberg}\nwrite_mode: history", None),
        ("tables: {a: {write_mode: history}}\ndestination: bigquery:p.d", ["tables.a.write_mode"]),
        ("source: {publication: p}", ["source"]),
        ("source: x", ["source"]),
        ("state: {url: 'sqlite://'}", ["state.url"]),
    ],
)
def test_what_is_missing_does_not_hide_the_rest(tmp_path: Path, section: str, faults: list[str] | None) -> None:
    least = {
        "pipeline": "pipeline: shop",
        "source": "source: {host: db, publication: p}",
        "destination": "destination: duckdb:x.duckdb",
    }
    rest = [text for key, text in least.items() if f"{key}:" not in section]
    file = tmp_path / "etl.yaml"
    file.write_text("\n".join([section, *rest, "copy: {workers: 0}"]), encoding="utf-8")
    found = [fault.field for fault in find_faults(read_document(file))[1]]
    assert "copy.workers" in found
    if faults is not None:
        assert sorted(str(field) for field in found) == sorted([*faults, "copy.workers"])


def schema(capsys: pytest.CaptureFixture[str]) -> Any:
    assert main(["config", "schema"]) == 0
    return json.loads(capsys.readouterr().out)


def examples(folder: Path) -> list[tuple[str, dict[str, Any]]]:
    """Every whole configuration in the docs that is not followed by an error."""
    found = []
    for page in (DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))):
        for block in re.finditer(
            r"```yaml\n((?:(?!```).)*)```(?!\s*```text)", page.read_text(encoding="utf-8"), re.DOTALL
        ):
            try:
                (folder / "etl.yaml").write_text(block[1].replace("${", "$${"), encoding="utf-8")
                values = read_document(folder / "etl.yaml").values
            except ConfigError:
                continue  # of another tool
            if {"pipeline", "source", "destination"} <= values.keys():
                found.append((page.name, values))
    return found


def test_the_schema_accepts_the_examples_and_refuses_each_misspelling(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = schema(capsys)
    jsonschema.Draft202012Validator.check_schema(whole)
    accepts = jsonschema.Draft202012Validator(whole).is_valid
    whole_files = examples(tmp_path)
    for page, values in whole_files:
        assert accepts(values), page
    assert len(whole_files) >= 5

    least = {"pipeline": "shop", "source": {"host": "db", "publication": "p"}, "destination": "duckdb:x"}
    full: dict[str, Any] = {
        **least,
        "source": {"host": "db", "publication": "p", "port": "${PORT}", "sslmode": "require", "keepalives": 1},
        "state": {"url": "sqlite:///x.db"},
        "batch": {"max_rows": 5, "max_bytes": "8MiB", "max_age": "500ms", "kept_wal": 0},
        "copy": {"workers": 2, "connections_per_table": 3},
        "types": {"numeric": "decimal(38, 10)", "arrays": "list(2)", "out_of_range": None, "enum": "${ENUM}"},
        "tables": {"public.*": {"write_mode": "append", "columns": {"hash": ["a"], "truncate": {"b": 3}}}},
    }
    assert accepts(full)
    for section in ("", "source", "state", "batch", "copy", "types", "tables.public.*", "tables.public.*.columns"):
        at: Any = json.loads(json.dumps(full))
        changed = at
        for key in filter(None, section.replace("public.*", "public/*").split(".")):
            at = at[key.replace("/", ".")]
        at["xyzzy"] = "x"
        assert not accepts(changed), section
    for wrong in (
        {"pipeline": "My Shop"},
        {"destination": {"type": "duckdb", "file": "x"}},
        {"batch": {"max_age": "soon"}},
        {"write_mode": "mirrored"},
        {"types": {"numeric": "float"}},
        {"tables": {"a": {"columns": {"truncate": ["b"]}}}},
        {"copy": {"workers": "many"}},
    ):
        assert not accepts({**least, **wrong}), wrong
    for key in least:
        assert not accepts({name: value for name, value in least.items() if name != key}), key
