"""The offline loops: imitation of logs until their held-out loss flattens, and more from the same logs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rollout.rows import Row, rows_of, tokenize
from trainer.batch import Datum
from trainer.context import Trainee, adam, done, timed
from trainer.logs import Batches, advantage_weights, filtered, imitation_data, is_flat, normaliser, split_logs
from trainer.run import Imitation, Offline, Optimizer
from trainer.versions import keep_snapshots

COMMIT_EVERY = 50
"""Steps between checkpoints; a killed run makes at most as many again."""


@dataclass(frozen=True)
class Fit:
    """A fixed data set to minimise cross entropy on."""

    data: list[Datum]
    validation: list[Datum]
    settings: Optimizer
    steps: int
    decay: float = 1.0  # of the learning rate, in a line
    check: int = 0  # steps between validation losses
    patience: int = 0  # checks without gain that end it; 0 goes on to `steps`
    min_gain: float = 0.0


async def imitate(trainee: Trainee, name: str, settings: Imitation) -> None:
    """Every logged episode, as it is."""
    logs = split_logs(logged_rows(trainee), share=settings.holdout, seed=trainee.run.seed)
    patience = settings.patience if settings.until == "validation_flat" else 0
    await fit(
        trainee, name,
        Fit(
            imitation_data(logs.train), imitation_data(logs.validation), settings, settings.steps,
            check=settings.check, patience=patience, min_gain=settings.min_gain,
        ),
    )  # fmt: skip


async def improve(trainee: Trainee, name: str, settings: Offline) -> None:
    """More from the same logs: the good ones alone, or the better ones more."""
    everything = split_logs(logged_rows(trainee), share=0.0, seed=trainee.run.seed).train
    if settings.algorithm == "filtered_bc":
        data = imitation_data(filtered(everything, shortest=settings.shortest))
    else:
        weights_R = advantage_weights(everything, beta=settings.beta, discount=settings.discount)
        data = imitation_data(everything, weights_R)
    await fit(trainee, name, Fit(data, [], settings, settings.steps, decay=0.1))


def logged_rows(trainee: Trainee) -> list[Row]:
    """The learner's rows of all ok logged episodes, tokenized with its renderer."""
    seats = trainee.trained_seats()
    rows: list[Row] = []
    for episode in trainee.store.episodes(stage="logs", ok=True):
        rows.extend(rows_of(tokenize(episode, trainee.renderer, seats[episode.env]), seats[episode.env]))
    return rows


async def fit(trainee: Trainee, name: str, work: Fit) -> None:
    """Go on from `state.step` to the end. Batches are functions of the step, so that a resumed run sees the same."""
    state, client = trainee.state, trainee.client
    batches = Batches(len(work.data), work.settings.batch, name, trainee.run.seed)
    divisor = normaliser(work.data, batches.size)
    scaled = [d.scaled(1.0 / divisor) for d in work.data]
    trainee.screen.begin(name, work.steps, "steps", state.step)
    while state.step < work.steps and not _flat(work, state.history):
        with timed(state.wall_s, "train"):
            places = batches.at(state.step)
            params = adam(work.settings, state.step, total=work.steps, decay=work.decay)
            passed = client.forward_backward([scaled[i] for i in places], "cross_entropy")
            stepped = client.optim_step(params)
            output, update = await done(passed), await done(stepped)
        state.step += 1
        state.number = update.number
        await keep_snapshots(trainee, update.number - 1)
        state.consumed[name] = state.consumed.get(name, 0) + len(places)
        _count(state.counters, output.tokens, sum(len(work.data[i]) for i in places))
        # The sum over constants is the mean of nats per token, up to how long this batch's rows happened to be.
        loss = output.loss * divisor / max(output.tokens, 1) / _mean_weight(work.data)
        numbers = {"loss": loss, "grad_norm": update.grad_norm, "lr": params.learning_rate, "tokens": output.tokens}
        trainee.metrics.write(name, state.step, state.number, numbers)
        trainee.screen.advance(loss=loss)
        if work.check and state.step % work.check == 0:
            await _validate(trainee, name, work)
        if state.step % COMMIT_EVERY == 0:
            trainee.commit()
    stopped = "validation loss is flat" if _flat(work, state.history) else "all steps done"
    trainee.screen.end(f"{stopped} after {state.step} steps")


async def _validate(trainee: Trainee, name: str, work: Fit) -> None:
    state = trainee.state
    with timed(state.wall_s, "train"):
        output = await done(trainee.client.forward(work.validation))
    state.history.append(output.loss / max(output.tokens, 1))
    trainee.metrics.write(name, state.step, state.number, {"loss": state.history[-1]}, kind="validation")
    trainee.screen.advance(0, validation=state.history[-1])


def _flat(work: Fit, history: Sequence[float]) -> bool:
    return work.patience > 0 and is_flat(history, patience=work.patience, min_gain=work.min_gain)


def _mean_weight(data: Sequence[Datum]) -> float:
    return sum(float(d.weights.sum()) for d in data) / max(sum(d.trained for d in data), 1)


def _count(counters: dict[str, float], trained: int, seen: int) -> None:
    counters["trained_tokens"] = counters.get("trained_tokens", 0) + trained
    counters["seen_tokens"] = counters.get("seen_tokens", 0) + seen
