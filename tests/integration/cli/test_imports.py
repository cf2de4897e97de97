"""What a process loads: a copy and a stream into DuckDB never import pandas, 1.4 s of CPU and 56 MB of memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import etl_core
from tests.integration.cli.conftest import Project

_PROGRAM = """
import sys, traceback

class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "pandas":
            print("PANDAS", *traceback.format_stack()[-6:], file=sys.stderr)
        return None

sys.meta_path.insert(0, Refusing())
from etl_core.cli import main
sys.exit(main(sys.argv[1:]))
"""

_TABLE = """
CREATE TABLE typed (
    id int, part text, PRIMARY KEY (id, part), flag bool, small int2, big int8, ratio float8, price numeric(12,2),
    at timestamptz, since timestamp, day date, clock time, span interval, body bytea, doc jsonb, tags text[], num int[],
    long text, u uuid);
ALTER TABLE typed ALTER long SET STORAGE EXTERNAL;
INSERT INTO typed SELECT g, 'a', g % 2 = 0, g, g, g / 3.0, g, CASE g WHEN 1 THEN 'infinity' ELSE now() END,
    CASE g WHEN 2 THEN '-infinity' WHEN 3 THEN '0044-03-15 BC' ELSE now()::timestamp END, current_date, '24:00:00',
    '1 mon 2 days 3 s', '\\x00ff', '{"a": 1}', '{a,NULL,"b c"}', '{1,2}', repeat('x', 5000), gen_random_uuid()
    FROM generate_series(1, 20) g;
INSERT INTO typed (id, part) VALUES (0, 'nothing else');
"""

_CHANGES = """
INSERT INTO typed SELECT id + 100, part, flag, small, big, ratio, price, at, since, day, clock, span, body, doc, tags,
    num, long, u FROM typed;
UPDATE typed SET price = price + 1 WHERE id < 5;
UPDATE typed SET part = 'b' WHERE id = 6;
DELETE FROM typed WHERE id = 7;
ALTER TABLE typed ADD COLUMN added timestamptz NOT NULL DEFAULT '2020-01-01 00:00:00+00';
UPDATE typed SET flag = NOT flag WHERE id = 8;
"""


def _run(project: Project, *arguments: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *arguments],
        cwd=project.folder,
        env={"PYTHONPATH": str(Path(etl_core.__file__).parents[1]), "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


def test_a_copy_and_a_stream_never_import_pandas(project: Project) -> None:
    project.database.execute(_TABLE)
    project.configure(tables="[public.typed]")
    assert "PANDAS" not in _run(project, "run", "--until-caught-up")

    for statement in _CHANGES.split(";")[:-1]:
        project.database.execute(statement)
    assert "PANDAS" not in _run(project, "run", "--until-caught-up")
    assert project.run("verify").status == 0
