"""`tools: [sql]` in real boxes: what the agent sees, what a limit does, how checks look at the database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from envfarm.blocks import Table, Text
from envfarm.errors import SpecError, VerifierFault
from envfarm.spec import EnvSpec, load_spec
from envfarm.task.database import Result
from envfarm.task.env import TaskEnv
from envfarm.task.sql import shown
from envfarm.testing.check_env import check_env
from envfarm.tools import ToolCall
from tests.envfarm.task_files import Opened, task_spec

pytestmark = pytest.mark.box
ORDERS = Path(__file__).parent / "toys" / "orders" / "orders.yaml"
CREATE = "CREATE TABLE t (a INTEGER PRIMARY KEY, b TEXT); INSERT INTO t VALUES (1, 'one'), ({{ size + 10 }}, 'size');"
FOREVER = "sql WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT count(*) FROM r"


def spec_of(folder: Path, **task: Any) -> EnvSpec:
    keys = {"tools": [{"sql": {"database": "/task/shop.db", "create": CREATE}}], "solution": "sql DELETE FROM t WHERE a = 1"}
    return task_spec(folder, prompt="p", limits={"turns": 12}, **{**keys, **task})


def test_an_environment_of_yaml_alone_passes_the_conformance_suite() -> None:
    findings = list(check_env(load_spec(ORDERS), episodes=2, contents=40))
    assert [f for f in findings if not f.ok] == [] and len(findings) == 7


def test_the_agent_sees_rows_counts_and_mistakes(tmp_path: Path, opened: Opened) -> None:
    session, turn = opened(spec_of(tmp_path), "sql SELECT * FROM t")
    assert turn.text == "a | b\n1 | one\n13 | size"
    assert turn.blocks == (Table(("a", "b"), (("1", "one"), ("13", "size")), exact=True),)
    assert session.step("sql UPDATE t SET b = 'x' WHERE a = 1").text == "1 row changed"
    assert session.step(ToolCall("sql", {"statement": "SELECT b FROM t\nWHERE a = 1"})).text == "b\nx"
    turn = session.step("sql SELECT * FROM nobody")
    assert turn.text == "error: no such table: nobody" and not turn.malformed
    assert session.step("sql ATTACH '/task/other.db' AS o").text == "error: not authorized"
    assert session.step("sql").malformed
    assert [t.name for t in session.reset(session.env_spec.instance("train", 1)).tools] == ["sql", "submit"]


def test_rows_are_shown_briefly() -> None:
    assert shown(Result(("a",), [(None,), (b"\x01\xff",), ("x\ny",), (1.5,)], False, -1, None)) == (
        Table(("a",), (("NULL",), ("x'01ff'",), ("x\\ny",), ("1.5",)), exact=True),
    )
    assert shown(Result(("a",), [], False, -1, None))[1] == Text("no rows")
    table, more = shown(Result(("a",), [("y" * 999,)] * 50, False, -1, None))
    assert isinstance(table, Table) and len(table.rows) == 19 and len(table.rows[0][0]) == 203
    assert more == Text("only the first 19 rows are shown")
    assert shown(Result((), [], False, -1, None)) == (Text("ok"),)


def test_three_statements_that_take_too_much_end_the_episode(tmp_path: Path, opened: Opened) -> None:
    session, turn = opened(spec_of(tmp_path), FOREVER)
    assert turn.text == "stopped: cpu limit" and not turn.over
    session.step(FOREVER)
    turn = session.step(FOREVER)
    assert turn.stop == "agent_limit" and turn.rewards == {"agent": 0.0}


def test_other_tools_see_the_file_and_what_they_do_to_it(tmp_path: Path, opened: Opened) -> None:
    tools = ["shell", "files", {"sql": {"database": "shop.db", "create": CREATE}}]
    session, turn = opened(spec_of(tmp_path, tools=tools), "shell head -c 15 shop.db")
    assert turn.text == "SQLite format 3"
    session.step("shell cp shop.db kept; echo nothing > shop.db")
    assert session.step("sql SELECT a FROM t").text == "error: file is not a database"
    session.step("shell rm shop.db; ln -s /etc/passwd shop.db")  # outside of the workdir
    assert "leaves /task" in session.step("sql SELECT a FROM t").text
    session.step("shell rm shop.db")
    assert session.step("sql SELECT a FROM t").text == "/task/shop.db: No such file or directory"
    session.step("shell mv kept shop.db")
    assert session.step("sql SELECT count(*) FROM t").text == "count(*)\n2"
    assert session.step("shell ls").text == "shop.db"


def test_a_full_disk_is_the_agents_doing(tmp_path: Path, opened: Opened) -> None:
    tools = ["shell", {"sql": {"database": "shop.db", "create": CREATE}}]
    session, _ = opened(spec_of(tmp_path, tools=tools), "shell head -c 99999999 /dev/zero > big")
    turn = session.step("sql CREATE TABLE u AS SELECT zeroblob(90000) AS z")
    assert "No space left on device" in turn.text and not turn.over


# Checks.


@pytest.mark.parametrize(
    ("actions", "reward"),
    [
        (["sql DELETE FROM t WHERE b = 'one'"], 1.0),
        (["sql DELETE FROM t", "sql INSERT INTO t VALUES (13, 'size')"], 1.0),
        (["sql UPDATE t SET a = 1 WHERE a = 1"], 0.0),
        (["sql DELETE FROM t WHERE b = 'one'", "sql CREATE INDEX i ON t (b)"], 0.0),
        (["sql DROP TABLE t"], 0.0),
    ],
)
def test_databases_are_compared_by_what_they_hold(tmp_path: Path, opened: Opened, actions: list[str], reward: float) -> None:
    _, turn = opened(spec_of(tmp_path), *actions, "submit")
    assert turn.rewards == {"agent": reward}


@pytest.mark.parametrize(
    ("expr", "reward"),
    [
        ('query("SELECT count(*) FROM t")[0][0] == 1', 1.0),
        ('query("SELECT b FROM t") == [("size",)]', 1.0),
        ("query(\"SELECT a FROM t WHERE b = 'size'\")[0][0] == size + 10", 1.0),
        ('query("SELECT * FROM gone")', 0.0),
        ('query("SELECT c FROM t") == []', 0.0),
    ],
)
def test_an_expression_can_ask_the_database(tmp_path: Path, opened: Opened, expr: str, reward: float) -> None:
    _, turn = opened(spec_of(tmp_path, check={"expr": expr}), "sql DELETE FROM t WHERE a = 1", "submit")
    assert turn.rewards == {"agent": reward}


def test_a_database_that_the_agent_took_away_fails_and_a_wrong_query_is_the_authors(tmp_path: Path, opened: Opened) -> None:
    tools = ["shell", {"sql": {"database": "shop.db", "create": CREATE}}]
    spec = spec_of(tmp_path, tools=tools, check={"expr": 'query("SELECT 1")'})
    _, turn = opened(spec, "shell rm shop.db", "submit")
    assert turn.rewards == {"agent": 0.0}
    with pytest.raises(VerifierFault, match="syntax error"):
        opened(spec_of(tmp_path, check={"expr": 'query("SELEC 1")'}), "submit")


def test_a_script_gets_the_file(tmp_path: Path, opened: Opened) -> None:
    (tmp_path / "check.py").write_text(
        "import sqlite3\nassert sqlite3.connect('shop.db').execute('SELECT count(*) FROM t').fetchone() == (1,)\n"
    )
    spec = spec_of(tmp_path, check={"script": "check.py"})
    assert opened(spec, "sql DELETE FROM t WHERE a = 1", "submit")[1].rewards == {"agent": 1.0}
    assert opened(spec, "submit")[1].rewards == {"agent": 0.0}


# Authors.


@pytest.mark.parametrize(
    ("solution", "says"),
    [
        ("sql SELEC 1", r"solution line 'sql SELEC 1': error: near .*syntax error"),
        ("cat shop.db", "solution line 'cat shop.db': Unknown action 'cat'"),
        (FOREVER, "runs into a limit"),
    ],
)
def test_a_solution_that_cannot_be_played_is_told(tmp_path: Path, opened: Opened, solution: str, says: str) -> None:
    with pytest.raises(VerifierFault, match=says):
        opened(spec_of(tmp_path, solution=solution), "submit")


def test_a_script_of_sql_that_fails_is_told(tmp_path: Path, opened: Opened) -> None:
    tools = [{"sql": {"database": "shop.db", "create": "CREATE TABL t (a)"}}]
    with pytest.raises(SpecError, match=r"task\.tools: sql\.create fails: near .TABL.: syntax error"):
        opened(spec_of(tmp_path, tools=tools))


def test_the_oracle_plays_the_lines_and_waits_for_those_that_did_not_run(tmp_path: Path, opened: Opened) -> None:
    spec = spec_of(tmp_path, solution="sql SELECT 1\nshell echo {{ size }} > out\nsql DELETE FROM t WHERE a = 1", tools=[
        "shell", {"sql": {"database": "shop.db", "create": CREATE}}
    ])  # fmt: skip
    session, _ = opened(spec)
    assert session.oracle() == session.oracle() == "sql SELECT 1"
    session.step("sql SELECT  2")
    assert session.oracle() == "sql SELECT 1"
    turn = session.step(session.oracle())
    while not turn.over:
        turn = session.step(session.oracle())
    assert turn.rewards == {"agent": 1.0}


def test_fools_look_into_the_tables_there_are(tmp_path: Path, opened: Opened) -> None:
    session, _ = opened(spec_of(tmp_path))
    said = {session.random(seed) for seed in range(60)}
    assert {"submit", "sql SELECT * FROM t", "sql DELETE FROM t"} <= said
    session, _ = opened(spec_of(tmp_path, noise="sql SELECT {{ size }}\n"))
    assert {session.random(seed) for seed in range(5)} == {"sql SELECT 3"}


def test_plain_text_goes_to_the_shell_only_where_no_tool_is_called_by_name(tmp_path: Path) -> None:
    assert TaskEnv(spec_of(tmp_path, tools=["shell", {"sql": {"database": "a"}}])).text_tool is None
    assert TaskEnv(task_spec(tmp_path, prompt="p", tools=["files", "shell"])).text_tool == "shell"
