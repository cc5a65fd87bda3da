"""Evaluations within a run: every stage's policy on the same instances, and the points of the learning curve."""

from __future__ import annotations

from rollout.evaluate import EvalResult, evaluate
from rollout.requests import EnvChoice
from trainer.context import Trainee
from trainer.summary import Evaluation, load_evaluation, save_evaluation, text_of


async def evaluate_policy(trainee: Trainee, name: str) -> Evaluation:
    """Play the learner as it is now on every split; saved as it is done, and not done twice for the same weights."""
    checksum = trainee.rollouts.policies[trainee.run.learner].version.checksum
    opponents = opponents_of(trainee)
    known = load_evaluation(trainee.run_dir, name)
    if known is not None and (known.checksum, known.opponents) == (checksum, opponents):
        return known
    made = Evaluation(stage=name, checksum=checksum, splits={}, opponents=opponents)
    counts = {split: trainee.run.evaluate.count(split) for split in trainee.run.evaluate.splits}
    trainee.screen.begin(f"evaluate {name}", sum(counts.values()), "episodes")
    for split, episodes in counts.items():
        choices = choices_of(trainee, split)
        if not choices:
            continue
        made.splits[split] = await _play(trainee, choices, split, episodes, f"eval/{name}/{split}", 0)
        shown = made.splits[split].to_json()
        trainee.metrics.write(name, trainee.state.step, trainee.state.number, _scalars(made.splits[split]), kind=f"final/{split}")
        trainee.screen.result(name, split, text_of(shown))
    trainee.screen.end()
    save_evaluation(trainee.run_dir, made)
    return made


async def curve_point(trainee: Trainee, name: str, step: int) -> None:
    """A cheaper evaluation while a stage goes on: the first instances of the splits that `evaluate.curve` names."""
    for split, episodes in trainee.run.evaluate.curve.items():
        result = await _play(trainee, choices_of(trainee, split), split, episodes, f"curve/{name}/{split}", step)
        trainee.metrics.write(name, step, trainee.state.number, _scalars(result), kind=f"curve/{split}")


def choices_of(trainee: Trainee, split: str) -> list[EnvChoice]:
    """The environments that have the split: `real` need not be there ("not measured"), others are checked before."""
    return [c for c in trainee.run.evaluation_choices(trainee.specs) if split in c.spec.splits]


def opponents_of(trainee: Trainee) -> dict[str, str]:
    """Who sits beside the learner in evaluations now: policy -> checksum. Figures against others are not comparable."""
    names = {name for c in trainee.run.evaluation_choices(trainee.specs) for name in c.seats.values()}
    return {n: trainee.rollouts.policies[n].version.checksum for n in sorted(names) if n != trainee.run.learner}


async def _play(trainee: Trainee, choices: list[EnvChoice], split: str, episodes: int, stage: str, step: int) -> EvalResult:
    run = trainee.run
    return await evaluate(
        trainee.rollouts, choices, split, episodes, run.learner, stage=stage, step=step,
        sampling=run.sampling.params(temperature=run.evaluate.temperature),
        progress=lambda _: trainee.screen.advance() if not stage.startswith("curve") else None,
    )  # fmt: skip


def _scalars(result: EvalResult) -> dict[str, float | None]:
    low, high = result.ci95
    out: dict[str, float | None] = {"success": result.success, "ci_low": low, "ci_high": high, "episodes": float(result.episodes)}
    return out | {f"success/{env}": part.success for env, part in result.by_env.items()}
