"""The run file's lower half: what it says, and where it is wrong."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from envfarm.errors import CapabilityError, RunFileError, UserError
from envfarm.registry import Registry
from rollout.build import ModelFolder, build_policies, make_renderer
from rollout.policies import ChatPolicy, ScriptedPolicy
from rollout.requests import EnvChoice, choose, draw_groups
from rollout.run import RolloutFile, read_run
from rollout.run_check import resolve
from rollout.types import SamplingParams
from tests.rollout.scenes import COUNT, NIM, CharTokenizer

REGISTRY = Registry([Path(__file__).parents[1] / "toy"])

GOOD = """\
envfarm: 1
run: trial
seed: 3
environments:
  - {id: toy/lamp-v0, weight: 2, setting: {rung: 0}}
policies:
  learner: {model: tiny, trainable: true}
  expert: {scripted: {oracle: {random: 0.35}}}
  rival: {scripted: random}
seats: {toy/lamp-v0: {agent: self}}
engine: {kind: torch, max_in_flight: 32}
sampling: {temperature: 0.5, max_tokens: 48}
"""


def load(tmp_path: Path, text: str) -> RolloutFile:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    run, source = read_run(path, RolloutFile)
    resolve(run, source, REGISTRY)
    return run


def test_a_run_file_says_who_plays_what_and_how(tmp_path: Path) -> None:
    run = load(tmp_path, GOOD)
    specs = {"toy/lamp-v0": REGISTRY.get("toy/lamp-v0")}
    (choice,) = run.choices(specs)
    assert choice.seats == {"agent": "learner"} and choice.weight == 2 and choice.setting == {"rung": 0}
    assert run.choices(specs, learner="expert")[0].seats == {"agent": "expert"}
    by_name = load(tmp_path, GOOD.replace("{agent: self}", "{agent: learner}"))
    assert by_name.choices(specs, learner="expert")[0].seats == {"agent": "expert"}, "`self` and the learner's name are one"
    assert run.scripted_policies() == {
        "expert": ScriptedPolicy("expert", "oracle", 0.35),
        "rival": ScriptedPolicy("rival", "random"),
    }
    assert run.sampling.params() == SamplingParams(temperature=0.5, max_tokens=48)
    assert run.folder == Path("runs/trial")
    plan = run.plan(specs)
    assert (plan.run, plan.seed, plan.max_in_flight) == ("trial", 3, 32)
    assert pickle.loads(pickle.dumps(plan)) == plan


def test_the_upper_half_is_read_past(tmp_path: Path) -> None:
    run = load(tmp_path, GOOD + "stages: [{online: {steps: 3}}]\nevaluate: {episodes: 5}\n")
    assert run == load(tmp_path, GOOD)


@pytest.mark.parametrize(
    ("old", "new", "place", "says"),
    [
        ("seed: 3", "sed: 3", "3:1", "unknown key 'sed' (did you mean 'seed'"),
        ("seed: 3", "seed: x", "3:7", "expected a"),
        ("run: trial", "run: a/b", "2:6", "run"),
        ("toy/lamp-v0, w", "toy/lamb-v0, w", "5:10", "toy/lamp-v0"),
        ("toy/lamp-v0, w", "toy/lamp, w", "5:10", "names no version; write 'toy/lamp-v0'"),
        ("{rung: 0}", "{rung: 9}", "5:43", "ladder has 3 rungs"),
        ("{rung: 0}", "{rnug: 0}", "5:43", "unknown key 'rnug'"),
        ("weight: 2", "weight: 0", "5:31", "greater than 0"),
        ("{agent: self}", "{agnt: self}", "10:23", "has no role 'agnt' (did you mean 'agent'?)"),
        ("{agent: self}", "{agent: lerner}", "10:30", "no policy 'lerner' (did you mean 'learner'?)"),
        ("seats: {toy/lamp-v0", "seats: {toy/lamp-v1", "10:9", "none of this run's environments"),
        ("{scripted: random}", "{scripted: rnadom}", "9:21", "(did you mean 'random'?)"),
        ("{scripted: random}", "{version: frozen@12}", "9:20", "of no policy here that is trained"),
        ("{scripted: random}", "{version: expert@imitation}", "9:20", "NAME@STAGE or NAME@NUMBER with NAME one of: learner"),
        ("{scripted: random}", "{version: learner}", "9:20", "learner"),
        ("{scripted: random}", "{scripted: random, model: x}", "9:10", "exactly one of"),
        ("{scripted: random}", "{}", "9:10", "found none"),
        ("{scripted: random}", "{scripted: random, trainable: true}", "9:10", "only a `model` can be trainable"),
        ("random: 0.35", "random: 1.5", "8:40", "less than or equal to 1"),
        ("max_in_flight: 32", "max_inflight: 32", "11:23", "did you mean 'max_in_flight'?"),
        ("temperature: 0.5", "temperature: -1", "12:25", "greater than or equal to 0"),
        ("envfarm: 1", "envfarm: 2", "1:10", "expected 1"),
        ("seed: 3", "backend: dockr", "3:10", "no backend 'dockr'"),
        ("seed: 3", "ray: {}", "3:6", "the key 'workers' is missing in ray"),
        ("seed: 3", "adapt: {}", "3:1", "`adapt:` is not implemented yet"),
        ("model: tiny, trainable: true}", "model: tiny}", "10:22", "the seat 'agent' has no policy"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, old: str, new: str, place: str, says: str) -> None:
    assert GOOD.count(old) == 1
    with pytest.raises(RunFileError) as error:
        load(tmp_path, GOOD.replace(old, new))
    assert f"run.yaml:{place}: " in str(error.value) and says in str(error.value), str(error.value)


def test_a_seat_without_a_policy_is_named_where_nothing_is_trainable(tmp_path: Path) -> None:
    text = GOOD.replace("model: tiny, trainable: true", "scripted: oracle").replace("seats: {toy/lamp-v0: {agent: self}}\n", "")
    with pytest.raises(RunFileError, match=r"the seat 'agent' has no policy: which of learner, expert, rival sits"):
        load(tmp_path, text)


def test_policies_that_can_act_are_built_and_others_refused(tmp_path: Path) -> None:
    run = load(tmp_path, GOOD)
    with pytest.raises(UserError, match=r"policy 'learner': model 'tiny' is no model here"):
        build_policies(run.policies, run.engine, run.folder)
    served = "{engine: {kind: openai, base_url: 'http://127.0.0.1:1/v1', model: big}}"
    run = load(tmp_path, GOOD.replace("{model: tiny, trainable: true}", served).replace("self", "learner"))
    built = build_policies(run.policies, run.engine, run.folder)
    assert isinstance(built["learner"], ChatPolicy) and built["learner"].version.checksum
    assert built["expert"] == ScriptedPolicy("expert", "oracle", 0.35)
    (tmp_path / "m").mkdir()
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / "m" / name).write_text("{}")
    bad = GOOD.replace("kind: torch", "kind: openai").replace("model: tiny", f"model: {tmp_path / 'm'}")
    with pytest.raises((CapabilityError, UserError)):
        run = load(tmp_path, bad)
        build_policies(run.policies, run.engine, run.folder)


def test_a_folder_that_is_no_model_says_what_it_lacks_and_what_lies_below(tmp_path: Path) -> None:
    below = tmp_path / "policies" / "rl"
    below.mkdir(parents=True)
    (below / "model.safetensors").write_text("")
    with pytest.raises(UserError, match=r"lacks config.json, model.safetensors, tokenizer.json; below it are: .*policies/rl"):
        ModelFolder.open(tmp_path)
    with pytest.raises(UserError, match=r"no renderer 'compcat' \(did you mean 'compact'"):
        make_renderer("compcat", CharTokenizer())


def choices(*weights: float) -> list[EnvChoice]:
    return [EnvChoice(s, {r: "p" for r in s.roles}, w) for s, w in zip((COUNT, NIM), weights, strict=False)]


def test_environments_are_chosen_by_weight_in_every_stretch() -> None:
    picked = [choose(choices(3, 1), n).spec.id for n in range(64)]
    for start in range(0, 64, 8):
        assert picked[start : start + 8].count(COUNT.id) == 6


def test_requests_are_a_function_of_their_place() -> None:
    def draw(**more: object) -> list[object]:
        asked = {"seed": 1, "stage": "online", "step": 2, "groups": 6, "size": 4, "sampling": SamplingParams()} | more
        return [(r.env, r.instance.hash, r.index) for r in draw_groups(choices(1, 1), **asked)]  # type: ignore[arg-type]

    assert draw() == draw()
    assert {h for _, h, _ in draw()} != {h for _, h, _ in draw(step=3)} != {h for _, h, _ in draw(seed=2)}  # type: ignore[misc]
    later = draw(first=6)
    assert [i for _, _, i in later] == list(range(6, 12))  # type: ignore[misc]
    assert draw(groups=12) == draw() + later, "drawing again goes on where the step stood"
