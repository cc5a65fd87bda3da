"""EnvSpec from YAML: what loads, what the hash covers, and what every mistake is told."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from envfarm.box import BoxSpec
from envfarm.bundle import Bundle, bundle, unpack
from envfarm.distributions import Bernoulli, Choice, Constant, LogNormal, LogUniform, Normal, Uniform, UniformInt, Weighted
from envfarm.errors import SpecError, UserError
from envfarm.registry import shipped_folder
from envfarm.spec import EnvSpec, TaskCheck, TaskSpec, load_spec
from envfarm.spec_file import json_schema, parse_bytes
from envfarm.yaml_source import read_yaml
from tests.envfarm.specs import REPAIR, small, write

SHIPPED = sorted(shipped_folder().rglob("*.yaml"))


def test_the_example_of_the_architecture(tmp_path: Path) -> None:
    spec = load_spec(write(tmp_path))
    assert (spec.id, spec.kind, spec.entry, spec.requires) == ("coding/repair-v0", "entry", "./repair.py:Repair", ("numpy>=2",))
    assert list(spec.axes) == ["modules", "bug", "naming", "domain", "decoys"]
    assert spec.axes["decoys"].condition == {"modules": [2, 4]}
    assert spec.axes["naming"].distribution == Weighted(("snake_case", "camelCase"), (3.0, 1.0))
    assert spec.perturb["observation.format"] == Choice(("plain", "markdown", "json", "xml"))
    assert spec.perturb["transition.latency_s"] == LogNormal(0.0, 0.5) and spec.perturb["reward.delay_turns"] == Constant(0)
    assert spec.ladder == ({"modules": [1, 1]}, {"modules": [1, 2]}, {"modules": [3, 4]})
    assert {name: spec.size(name) for name in spec.splits} == {
        "train": 1_000_000, "validation": 1_000, "heldout": 1_000, "real": 2,
    }  # fmt: skip
    assert list(spec.roles) == ["agent"] and spec.limits.turns == 12 and spec.reward.range == (0.0, 1.0)
    assert spec.sandbox.box_spec(spec.limits) == BoxSpec(
        image="envfarm/python", cpu=1.0, memory_bytes=512 << 20, pids=64, disk_bytes=256 << 20, exec_cpu_s=5, exec_timeout_s=20
    )
    assert spec.folder == tmp_path and spec.file == tmp_path / "repair.yaml" and spec.isolation == "shared"


def test_the_least_that_one_can_write(tmp_path: Path) -> None:
    spec = small(tmp_path, "")
    assert list(spec.roles) == ["agent"] and not spec.sandbox.box and spec.reward.solved_at == 1.0
    assert {name: spec.size(name) for name in spec.splits} == {"train": 1_000_000, "validation": 1_000, "heldout": 1_000}


def test_all_distributions(tmp_path: Path) -> None:
    body = """\
randomize:
  a: {uniform: [0, 1]}
  b: {loguniform: [0.001, 1e-1]}
  c: {normal: {mu: 0, sigma: 2, min: -1, max: 1}}
  d: {bernoulli: 0.25}
  e: {constant: [1, 2]}
  f: off
  g: {weighted: {1: 1, 2.5: 2, no: 3}}
  h: {uniform_int: [012, 012]}
  i: {choice: [1, true, null, a]}
"""
    spec = small(tmp_path, body)
    assert [axis.distribution for axis in spec.axes.values()] == [
        Uniform(0.0, 1.0), LogUniform(0.001, 0.1), Normal(0.0, 2.0, -1.0, 1.0), Bernoulli(0.25), Constant([1, 2]),
        Constant("off"), Weighted((1, 2.5, "no"), (1.0, 2.0, 3.0)), UniformInt(12, 12), Choice((1, True, None, "a")),
    ]  # fmt: skip
    assert EnvSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("file", [None, *SHIPPED], ids=lambda f: f.stem if f else "example")
def test_specs_travel(file: Path | None, tmp_path: Path) -> None:
    """Pickle and JSON give the same spec, and so does a bundle, unpacked elsewhere."""
    spec = load_spec(file or write(tmp_path / "here"))
    assert EnvSpec.from_json(spec.to_json()) == spec and pickle.loads(pickle.dumps(spec)) == spec
    assert len({spec, EnvSpec.from_json(spec.to_json())}) == 1
    packed = bundle(spec)
    assert packed == bundle(spec)
    for _ in range(2):
        moved = load_spec(unpack(packed, tmp_path / "there"))
        assert moved.hash == spec.hash and moved.path != spec.path
        assert moved.instance("train", 3).hash == spec.instance("train", 3).hash
    assert [p.name for p in (tmp_path / "there").iterdir()] == [packed.digest]


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    packed = bundle(load_spec(write(tmp_path / "here")))
    broken = Bundle(packed.digest, packed.file, packed.data.replace(b"Thank you", b"Thank me!"))
    with pytest.raises(UserError, match="is damaged"):
        unpack(broken, tmp_path / "there")


def test_what_the_hash_covers(tmp_path: Path) -> None:
    def hash_with(text: str = REPAIR, **files: str) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        path = write(folder, text)
        for name, content in files.items():
            (folder / name.replace("__", "/").replace("_dot_", ".")).parent.mkdir(parents=True, exist_ok=True)
            (folder / name.replace("__", "/").replace("_dot_", ".")).write_text(content)
        return load_spec(path).hash

    base = hash_with()
    same = [
        REPAIR + "# a comment\n",
        REPAIR.replace("{start: 0, count: 1000000}", "{count: 1000000, start: 0}"),
        REPAIR.replace("tags: [coding, python, tools]", "tags:\n  - coding\n  - 'python'\n  - tools"),
        REPAIR.replace("reward:  {range: [0, 1], solved_at: 1.0, verify: outputs}", "reward:  {range: [0.0, 1]}"),
        REPAIR.replace("512MiB", "0.5GiB"),
    ]
    assert [hash_with(text) for text in same] == [base] * len(same)
    assert hash_with(_hidden="x") != base, "data of the folder counts"
    assert hash_with(sub__deep_dot_txt="x") != base
    assert hash_with(_dot_hidden="x") == hash_with(__pycache____x_dot_pyc="x") == base
    assert hash_with(other_dot_yaml="envfarm: 1\nid: a/b-v0\nentry: x:Y\n") == base, "another environment of the same folder"
    assert hash_with(table_dot_yaml="rows: 1\n") != base, "a YAML file that is data"
    assert hash_with(words_dot_py="WORD = 'rooms:'\n") != base
    different = [REPAIR.replace("[1, 4]", "[1, 5]"), REPAIR.replace("turns: 12", "turns: 13"), REPAIR.replace("-v0", "-v1")]
    assert len({base, *map(hash_with, different)}) == 4
    order = REPAIR.replace("off_by_one, wrong_operator, swapped", "wrong_operator, off_by_one, swapped")
    assert hash_with(order) != base, "the order of a choice decides what a seed means"


WHERE = "randomize: {n: {uniform_int: [1, 4]}, c: {choice: [red, green]}, d: {constant: 1, if: {n: 4}}}\n"
SPLITS = "splits:\n  train: {seeds: {start: 0, count: 10}"
TASK = "envfarm: 1\nid: t/x-v0\nsandbox: {box: true}\ntask:\n  prompt: hello\n"


@pytest.mark.parametrize(
    ("body", "place", "says"),
    [
        # unknown keys and wrong types
        ("randomise: {}\n", "4:1", "unknown key 'randomise' (did you mean 'randomize'"),
        ("limits: {turn: 3}\n", "4:10", "unknown key 'turn' (did you mean 'turns'?)"),
        ("limits: {turns: many}\n", "4:17", "limits.turns: expected a whole number, found the text 'many'"),
        ("limits: {turns: 0}\n", "4:17", "greater than or equal to 1"),
        ("sandbox: {memory: lots}\n", "4:19", "expected a size such as 512MiB, found 'lots'"),
        ("sandbox: {network: open}\n", "4:20", "found the text 'open'"),
        ("isolation: forked\n", "4:12", "isolation: expected 'shared' or 'process'"),
        ("tags: coding\n", "4:7", "found the text 'coding'"),
        # keys that are designed and not there yet
        ("verifiers: tasks\n", "4:1", "`verifiers:` is not implemented yet"),
        ("sandbox: {image: {build: nowhere}}\n", "4:26", "there is no Dockerfile in"),
        ("sandbox: {image: {build: ../..}}\n", "4:26", "expected a folder beside this file or below"),
        ("sandbox: {network: allowlist}\n", "4:20", "not implemented yet"),
        ("reward: {verify: runner_fresh}\n", "4:18", "expected outputs without `harbor`"),
        # axes
        ("randomize: {a: {unifrom: [0, 1]}}\n", "4:17", "unknown distribution 'unifrom' (did you mean 'uniform'"),
        ("randomize: {a: [1, 2]}\n", "4:16", "write {choice: [...]}"),
        ("randomize: {a: {}}\n", "4:16", "found no distribution"),
        ("randomize: {a: {uniform: [0, 1], choice: [1]}}\n", "4:16", "found two distributions, uniform and choice"),
        ("randomize: {a: {choice: []}}\n", "4:25", "expected a list of at least one value"),
        ("randomize: {a: {choice: [x, y, x]}}\n", "4:32", "'x' stands there twice"),
        ("randomize: {a: {weighted: {x: 0}}}\n", "4:31", "expected a weight above 0, found 0"),
        ("randomize: {a: {uniform: [2, 1]}}\n", "4:26", "the range is empty: 2 is above 1"),
        ("randomize: {a: {uniform: [0, .inf]}}\n", "4:26", "two finite numbers"),
        ("randomize: {a: {uniform_int: [0, 1.5]}}\n", "4:30", "expected whole numbers"),
        ("randomize: {a: {loguniform: [0, 1]}}\n", "4:29", "bounds above 0"),
        ("randomize: {a: {normal: {mu: 0, sigma: 0}}}\n", "4:40", "expected a number above 0"),
        ("randomize: {a: {normal: {mean: 0, sigma: 1}}}\n", "4:32", "unknown key 'mean'"),
        ("randomize: {a: {normal: {sigma: 1}}}\n", "4:25", "the key 'mu' is missing"),
        ("randomize: {a: {bernoulli: 1.5}}\n", "4:28", "a probability from 0 to 1"),
        ("randomize: {a: .nan}\n", "4:16", "expected a finite value"),
        ("randomize: {a-b: 1}\n", "4:13", "named like a variable"),
        ("randomize: {a: {rows: none.jsonl}}\n", "4:23", "no such rows"),
        ("randomize: {b: {constant: 1, if: {a: 2}}, a: {constant: 2}}\n", "4:35", "'a' comes later"),
        ("randomize: {a: {constant: 1}, b: {constant: 1, if: {a: 2}}}\n", "4:56", "leaves no instance"),
        ("randomize: {b: {constant: 1, if: {z: 2}}}\n", "4:35", "unknown axis 'z'"),
        # channels
        ("perturb: {observation: {fromat: plain}}\n", "4:25", "(did you mean 'observation.format'"),
        ("perturb: {observation: {format: {choice: [plain, yaml]}}}\n", "4:33", "'yaml' is no value of this channel"),
        ("perturb: {transition: {tool_error: {uniform: [0, 2]}}}\n", "4:36", "expected a rate between 0 and 1"),
        # narrowing
        (WHERE + "ladder: [{n: [5, 6]}]\n", "5:14", "[5, 6] leaves nothing of uniform_int [1, 4]"),
        (WHERE + "ladder: [{m: 1}]\n", "5:11", "unknown axis 'm'; axes: n, c, d"),
        (WHERE + "ladder: [{n: 1, d: 1}]\n", "5:10", "leaves no instance: n"),
        (WHERE + "ladder: {n: 1}\n", "5:9", "ladder: expected a array"),
        (WHERE + SPLITS + ", where: {c: [blue]}}\n", "6:52", "'blue' is not among 'red', 'green'"),
        # splits
        (SPLITS + ", rows: real.jsonl}\n", "5:10", "expected either `seeds` or `rows`"),
        (SPLITS + "}\n  other: {seeds: {start: 9, count: 2}}\n", "6:18", "shares seeds with the split 'train'"),
        ("splits: {train: {seeds: {start: 0, count: 0}}}\n", "4:43", "greater than or equal to 1"),
        ("splits: {real: {rows: none.jsonl, key: id}}\n", "4:23", "no such rows"),
        ("splits: {real: {rows: real.jsonl}}\n", "4:16", "which column names a row"),
        ("splits: {real: {rows: [a]}}\n", "4:23", "need `instances:`"),
        ("instances: {rows: real.jsonl, key: id}\nsplits: {a: {rows: [r1, r7]}}\n", "5:25", "has no row 'r7'"),
        ("instances: {rows: real.jsonl, key: id}\nsplits: {a: {rows: {start: 1, count: 2}}}\n", "5:20", "has 2 rows"),
        ("instances: {rows: real.jsonl, key: id}\nsplits: {a: {rows: [r1]}, b: {rows: [r1]}}\n", "5:37", "shares the row 'r1'"),
        (
            "randomize: {id: {choice: [r1, r9]}}\ninstances: {rows: real.jsonl, key: id}\n"
            "splits: {a: {seeds: {count: 5}, where: {id: r9}}}\n",
            "6:40",
            "splits.a.where: leaves no row of real.jsonl",
        ),
        # reward, requirements
        ("reward: {range: [1, 0]}\n", "4:17", "low below high"),
        ("reward: {range: [0, 1], solved_at: 2}\n", "4:36", "outside reward.range"),
        ("requires: ['numpy >> 2']\n", "4:12", "not a requirement"),
        ("task: {prompt: x, check: {expr: 'true'}}\n", "4:1", "what runs (entry, task, harbor, openenv), found entry"),
    ],
)  # fmt: skip
def test_every_mistake_is_told_at_its_place(body: str, place: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        small(tmp_path, body)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"{tmp_path}/small.yaml:{place}: ")


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("envfarm: 2\nid: a/b-v0\nentry: ./repair.py:Repair\n", "1:10", "envfarm: expected 1, found 2"),
        ("envfarm: 1\nid: a/b\nentry: ./repair.py:Repair\n", "2:5", "id: expected"),
        ("envfarm: 1\nentry: ./repair.py:Repair\n", "1:1", "the key 'id' is missing"),
        ("envfarm: 1\nid: a/b-v0\n", "1:1", "exactly one key that says what runs (entry, task, harbor, openenv), found none"),
        ("envfarm: 1\nid: a/b-v0\nentry: ./repiar.py:Repair\n", "3:8", "did you mean 'repair.py'?"),
        ("envfarm: 1\nid: a/b-v0\nentry: repair\n", "3:8", "expected ./file.py:Class or package.module:Class"),
        (
            TASK + "  check: {expr: 'true', script: check.py}\n",
            "6:10",
            "one of same_as_solution, script, expr, found script and",
        ),
        (TASK + "  check: {same_as_solution: [/task]}\n", "6:10", "needs `task.solution`"),
        (TASK + "  check: {script: check.py}\n", "6:19", "no such file"),
        (TASK + "  setup: setup.j2\n  check: {expr: 'true'}\n", "6:10", "no such file"),
        (TASK, "5:3", "the key 'check' is missing"),
        (TASK + "  check: {expr: 'files['}\n", "6:17", "is no expression"),
        (TASK + "  tools: [shel]\n  check: {expr: 'true'}\n", "6:11", "unknown 'shel' (did you mean 'shell'?)"),
        (TASK + "  tools: [shell, sql]\n  check: {expr: 'true'}\n", "6:18", "sql needs the key 'database'"),
        (TASK + "  tools: [{sql: {}}]\n  check: {expr: 'true'}\n", "6:17", "sql needs the key 'database'"),
        (TASK + "  tools: [{sql: {databse: /task/a}}]\n  check: {expr: 'true'}\n", "6:18", "(did you mean 'database'?)"),
        (TASK + "  tools: [{sql: {database: /tmp/a}}]\n  check: {expr: 'true'}\n", "6:28", "'/tmp/a' is not below /task"),
        (TASK + "  tools: [{sql: {database: [a]}}]\n  check: {expr: 'true'}\n", "6:28", "expected text, found a list of 1"),
        (TASK + "  tools: [{sql: {database: a, create: b.j2}}]\n  check: {expr: 'true'}\n", "6:39", "no such file"),
        (TASK + "  tools: [{browser: /task/site}]\n  check: {expr: 'true'}\n", "6:21", "expected options (site, sent), found"),
        (TASK + "  tools: [{browser: {site: '{{ a'}}]\n  check: {expr: 'true'}\n", "6:28", "TemplateSyntaxError"),
        (TASK + "  tools: [{shell: {fast: yes}}]\n  check: {expr: 'true'}\n", "6:20", "shell takes none"),
        (TASK + "  tools: [{shell: {}, files: {}}]\n  check: {expr: 'true'}\n", "6:11", "expected a name, or one name with"),
        (TASK + "  tools: [files, {files: {}}]\n  check: {expr: 'true'}\n", "6:18", "'files' stands there twice"),
        (TASK + "  tools: [7]\n  check: {expr: 'true'}\n", "6:11", "expected a name, or one name with its options, found 7"),
        (TASK + "  setup: '{% if %}'\n  check: {expr: 'true'}\n", "6:10", "task.setup: an inline template: TemplateSyntaxError"),
        (TASK + "  files: {'{{ a': b}\n  check: {expr: 'true'}\n", "6:19", "TemplateSyntaxError"),
        (TASK + "  artifacts: [/etc/passwd]\n  check: {expr: 'true'}\n", "6:15", "'/etc/passwd' is not below /task"),
        (TASK.replace("true", "false") + "  check: {expr: 'true'}\n", "5:3", "a task runs in a box"),
    ],
)
def test_mistakes_at_the_top_and_in_tasks(text: str, place: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(tmp_path, text))
    assert says in str(caught.value) and str(caught.value).startswith(f"{tmp_path}/repair.yaml:{place}: ")


@pytest.mark.parametrize(
    ("rows", "line", "says"),
    [
        ('{"id": 1}\n{"id": 1}\n', "2:1", "duplicate key '1': already in"),
        ('{"id": 1}\n\n{"id": \n', "3:8", "not valid JSON"),
        ('{"id": 1}\n[1]\n', "2:1", "must be a JSON object"),
        ('{"id": 1}\n{"ids": 1}\n', "2:1", "the row has no 'id' (did you mean 'ids'?)"),
        ('{"id": 1, "x": NaN}\n', "1:1", "NaN is not a JSON number"),
        ('{"id": 1, "id": 2}\n', "1:1", "names a column twice"),
    ],
)
def test_malformed_rows_are_told_by_line(rows: str, line: str, says: str, tmp_path: Path) -> None:
    path = write(tmp_path)
    (tmp_path / "real.jsonl").write_text(rows)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert says in str(caught.value) and str(caught.value).startswith(f"{tmp_path}/real.jsonl:{line}: ")


def test_a_task(tmp_path: Path) -> None:
    text = TASK + "  files: {'/task/{{ n }}.txt': '{{ n }}'}\n  solution: echo\n  check: {same_as_solution: [/task/out]}\n"
    spec = load_spec(write(tmp_path, text + "randomize: {n: {uniform_int: [1, 9]}}\n"))
    assert spec.kind == "task" and spec.task == TaskSpec(
        prompt="hello", files={"/task/{{ n }}.txt": "{{ n }}"}, solution="echo", check=TaskCheck(same_as_solution=("/task/out",))
    )


@pytest.mark.parametrize("file", [None, *SHIPPED], ids=lambda f: f.stem if f else "example")
def test_the_json_schema_accepts_what_loads(file: Path | None, tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(json_schema())
    assert list(validator.iter_errors(read_yaml(file or write(tmp_path)).data)) == []


@pytest.mark.parametrize(
    "change", [{"randomise": {}}, {"envfarm": 2}, {"randomize": {"a": {"unifrom": [0, 1]}}}, {"entry": None}]
)
def test_the_json_schema_refuses_what_does_not(change: dict[str, Any]) -> None:
    data = {k: v for k, v in {**yaml.safe_load(REPAIR), **change}.items() if v is not None}
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(data)


TOYS = Path(__file__).parent / "toys"


@pytest.mark.parametrize("file", [TOYS / "orders" / "orders.yaml", TOYS / "desk" / "desk.yaml"], ids=lambda f: f.stem)
@pytest.mark.parametrize("tools", [None, ["sql"], [{"sql": {}}], [{"browser": {"site": "a", "page": "b"}}], [{"shell": {}}], []])
def test_the_json_schema_knows_tools_and_their_options(file: Path, tools: list[Any] | None) -> None:
    data = read_yaml(file).data
    if tools is not None:
        data["task"]["tools"] = tools
    assert jsonschema.Draft202012Validator(json_schema()).is_valid(data) == (tools is None)
    if tools is None:
        spec = load_spec(file)
        assert EnvSpec.from_json(spec.to_json()) == spec


def test_sizes() -> None:
    assert [parse_bytes(t) for t in ("1B", "1KiB", "2 MB", "0.5GiB")] == [1, 1024, 2_000_000, 1 << 29]
