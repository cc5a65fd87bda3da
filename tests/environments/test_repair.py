"""coding/repair: programs, mutations that show, tools, and a verdict that the agent's code has no part in."""

from __future__ import annotations

import ast
import gc
import json
import re
import sys
import threading

import pytest

from envfarm.registry import default_registry
from envfarm.session import local_session
from envfarm.testing import agents
from environments.coding.repair.catalog import DOMAINS, MIN_FAILING, programs, runner
from environments.coding.repair.layout import rename, styled
from environments.coding.repair.mutate import KINDS, variants
from environments.coding.repair.repair import _edit

box = pytest.mark.box
EVERY = [p for domain in DOMAINS for p in programs(domain)]


@pytest.fixture(scope="module")
def spec():
    return default_registry().get("coding/repair-v0")


@pytest.fixture
def session(spec):
    made = local_session(spec, perturb=False)
    yield made
    made.close()


# Programs and mutations.


def test_there_are_enough_programs_and_each_says_what_it_does():
    assert len(EVERY) >= 40 and len({p.name for p in EVERY}) == len(EVERY)
    assert len({ast.unparse(p.tree) for p in EVERY}) == len(EVERY)
    assert all(len(ast.get_docstring(p.tree) or "") > 40 for p in EVERY)


@pytest.mark.parametrize("program", EVERY, ids=lambda p: p.name)
def test_a_right_program_never_fails_and_its_answers_vary(program):
    answers = [program.answer(arguments) for arguments in program.pool]
    assert not any(a.startswith("error") for a in answers) and len(set(answers)) >= 3
    assert program.pool[0] == type(program)(program.domain, _again(program), program.tree).pool[0]


def _again(program):
    return getattr(DOMAINS[program.domain], program.name)


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "wrong_variable"])
def test_bugs_of_each_kind_are_found_in_every_domain_and_show(kind):
    for domain in DOMAINS:
        assert sum(bool(p.bugs(kind)) for p in programs(domain)) >= 5
    for program in EVERY:
        for bug in program.bugs(kind):
            broken = runner(bug.function)
            wrong = [i for i, a in enumerate(program.pool) if broken(a) != program.answer(a)]
            assert tuple(wrong) == bug.failing and len(wrong) >= MIN_FAILING


def test_a_mutation_is_one_change_of_its_kind():
    tree = ast.parse("def f(a, b):\n    if a < 1:\n        return 0\n    return min(a, b) - b\n").body[0]
    made = {kind: [ast.unparse(v) for v in variants(tree, kind)] for kind in KINDS}
    head = "def f(a, b):\n    if a < 1:\n        return 0\n    return "
    assert made["missing_case"] == ["def f(a, b):\n    return min(a, b) - b"]
    assert set(made["swapped_arguments"]) == {head + "b - min(a, b)", head + "min(b, a) - b"}
    assert head + "max(a, b) - b" in made["wrong_operator"] and head + "min(a, b) + b" in made["wrong_operator"]
    assert made["off_by_one"] == [ast.unparse(tree).replace("<", "<=")]
    assert all(text != ast.unparse(tree) for texts in made.values() for text in texts)


def test_names_change_their_style_and_nothing_else():
    (program,) = [p for p in EVERY if p.name == "longest_gap"]
    camel = rename(program.tree, "camelCase")
    assert camel.name == "longestGap" and styled("_a_b", "camelCase") == "_aB"
    assert [runner(camel)(a) for a in program.pool] == [program.answer(a) for a in program.pool]
    assert "per_shelf" not in ast.unparse(rename(next(p.tree for p in EVERY if p.name == "shelf_of"), "camelCase"))


@pytest.mark.parametrize(
    ("now", "right"),
    [
        ("a\nb\nc\n", "a\nB\nc\n"),
        ("def f():\n    return 1\n", "def f():\n    if x:\n        return 0\n    return 1\n"),
        ("a\n    junk\nb\n", "a\nb\n"),
        ("a\n", "a\nb\n"),
        ("", "a\n    b\n"),
        ("  a\n", "a\n"),
        ("x\ny\nz\n", "a\n  b\nc\nd\n"),
    ],
)
def test_edits_reach_the_right_text_in_the_end(now, right):
    for _ in range(8):
        if now == right:
            return
        call = _edit("f", now, right)
        if call.name == "write_file":
            now = call.arguments["content"]
            continue
        lines, i = now.splitlines(), call.arguments["line"] - 1
        indent = re.match(r" *", lines[i])[0]
        lines[i : i + 1] = [indent + new for new in call.arguments.get("text", "").splitlines()]
        now = "".join(f"{line}\n" for line in lines)
    raise AssertionError(now)


# Episodes.


@box
@pytest.mark.parametrize("rung", range(4))
@pytest.mark.parametrize("split", ["train", "heldout"])
def test_the_oracle_solves_and_nothing_does_not(spec, session, split, rung):
    instance = spec.instance(split, rung, {"rung": rung})
    played = agents.play(session, instance, agents.oracle)
    assert played.rewards == {"agent": 1.0}
    assert len(played.actions) >= (8 if rung == 3 else 3)
    assert agents.play(session, instance, agents.null).rewards == {"agent": 0.0}


@box
def test_the_oracle_recovers_from_another_hand(spec, session):
    instance = spec.instance("train", 1, {"rung": 1})
    turn = session.reset(instance)
    for action in ["shell rm *.py", "write_file main.py junk", "replace_line main.py 1 more junk", "replace_line main.py 9 x"]:
        turn = session.step(action)
    assert turn.text == "main.py has 1 lines; there is no line 9"
    while not turn.over:
        turn = session.step(session.oracle())
    assert turn.rewards == {"agent": 1.0}


def play(session, instance, *actions):
    turn = session.reset(instance)
    for action in actions:
        turn = session.step(action)
    return turn


@box
def test_lines_are_replaced_with_their_indentation_kept(spec, session):
    instance = spec.instance("train", 0, {"rung": 0})
    play(session, instance, "write_file f.py if 1:\n    a\n    b", "replace_line f.py 2 if 2:\n    c", "replace_line f.py 4")
    assert session.step("read_file f.py").text == "1 if 1:\n2     if 2:\n3         c"


def cheat(table):
    """A main.py that knows the examples by heart."""
    return f"import json, sys\nT = {table!r}\nfor line in sys.stdin:\n    print(T.get(line.strip(), 'null'))"


@box
def test_programs_that_do_not_answer_the_hidden_calls_fail(spec, session):
    instance = spec.instance("train", 0, {"rung": 0})
    examples = play(session, instance, "shell cat examples.txt").text
    table = dict(line.split(" -> ") for line in examples.splitlines())
    assert len(table) >= 2
    for program in (cheat(table), "while True: pass", "import os; os.kill(os.getppid(), 9)", "print('[]\\n' * 99)", "1 / 0"):
        turn = play(session, instance, f"write_file main.py {program}", "submit")
        assert turn.rewards == {"agent": 0.0}
    assert play(session, instance, "shell rm main.py; ln -s /etc/passwd main.py", "submit").rewards == {"agent": 0.0}


@box
def test_the_share_of_right_answers_is_recorded_beside_the_reward(spec, session):
    turn = play(session, spec.instance("train", 0, {"rung": 0}), "submit")
    parts = turn.components["agent"]
    assert parts["env"] == 0.0 and 0.0 <= parts["answers"] < 1.0


@box
def test_neither_right_functions_nor_hidden_calls_are_in_the_box(spec, session):
    instance = spec.instance("heldout", 2, {"rung": 1})
    seen = play(session, instance, "shell cat *; env; set; cat /proc/*/environ /proc/*/cmdline; ls -laR /task /tmp /run").text
    scene = session.scene
    assert scene.broken_files and all(scene.right[path] not in seen for path in scene.broken_files)
    examples = session.step("shell cat examples.txt").text
    hidden = [json.dumps([name, a]) for name, a, _ in scene.calls]
    assert sum(call in seen for call in set(hidden) - {line.split(" -> ")[0] for line in examples.splitlines()}) == 0


@box
def test_examples_show_the_bug(spec, session):
    for index in range(4):
        instance = spec.instance("train", index, {"rung": 1})
        lines = play(session, instance, "shell cat examples.txt").text.splitlines()
        ran = session.step("shell sed 's/ -> .*//' examples.txt | python3 main.py").text.splitlines()
        assert len(ran) == len(lines) and ran != [line.split(" -> ")[1] for line in lines]


def test_kinds_of_bugs_are_held_out(spec):
    kinds = {split: {spec.instance(split, i).params["bug"] for i in range(60)} for split in spec.splits}
    assert kinds["train"] == kinds["validation"] and not kinds["train"] & kinds["heldout"]
    assert kinds["train"] | kinds["heldout"] == set(KINDS)


def test_two_threads_may_read_the_programs_at_once():
    """A second thread begins in the middle of the first one's parse: sessions with boxes have a thread each."""
    me, others = threading.get_ident(), []

    def begin_beside(phase, info):
        if threading.get_ident() == me and not others and sys._getframe(1).f_code is ast.parse.__code__:
            others.append(threading.Thread(target=programs.__wrapped__, args=("payroll",)))
            others[0].start()
            others[0].join(0.5)  # it waits for us, or has done what would break us

    before = gc.get_threshold()
    gc.callbacks.append(begin_beside)
    gc.set_threshold(1)
    try:
        assert len(programs.__wrapped__("weather")) == len(programs("weather"))
    finally:
        gc.callbacks.remove(begin_beside)
        gc.set_threshold(*before)
    others[0].join()
