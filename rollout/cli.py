"""Commands of the rollout layer: rollout, eval, replay, export, store, models. Light: work is imported late."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rollout.models_command import models_app

app = typer.Typer(no_args_is_help=True)
store_app = typer.Typer(no_args_is_help=True, help="Look into stores of episodes.")
app.add_typer(store_app, name="store")
app.add_typer(models_app, name="models")

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout; progress goes to stderr.")]
Farm = Annotated[str | None, typer.Option(metavar="NAME|URL", help="Play on this farm's workers and boxes (`envfarm farm`).")]
Salvage = Annotated[bool, typer.Option(help="Leave damaged parts out instead of refusing the store.")]


@app.command()
def rollout(
    run_file: Annotated[Path | None, typer.Argument(metavar="[RUN.yaml]", help="A run file; or give --env.")] = None,
    env: Annotated[list[str] | None, typer.Option(help="Environment id (globs allowed), repeatable.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="oracle (default with --env), null, random, oracle:0.35, or a model folder.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=1, help="How many in all.")] = 16,
    group: Annotated[int, typer.Option(min=1, help="Episodes per instance.")] = 1,
    split: Annotated[str, typer.Option(help="Which split.")] = "train",
    rung: Annotated[int | None, typer.Option(help="Rung of the ladder.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed; default: the run file's, else 0.")] = None,
    out: Annotated[Path | None, typer.Option(help="Store to write, or to go on with.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where boxes come from.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes.")] = None,
    farm: Farm = None,
    json_: Json = False,
) -> None:
    """Play episodes and store them: `envfarm rollout RUN.yaml`, or `--env ID --policy oracle --out DIR`."""
    from rollout.commands import run_rollout
    from rollout.places import Where

    run_rollout(
        run_file, envs=env or [], policy=policy, episodes=episodes, group=group, split=split, rung=rung, seed=seed,
        out=out, where=Where(backend, workers, farm), as_json=json_,
    )  # fmt: skip


@app.command("eval")
def evaluate(
    policy: Annotated[
        str, typer.Argument(help="A model folder, a run (its latest policy), oracle, null, random, or a served model.")
    ],
    env: Annotated[list[str] | None, typer.Option(help="Environment id (globs allowed); default: the policy's own.")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Split, repeatable; default: the policy's own, else heldout.")] = None,
    episodes: Annotated[int | None, typer.Option(min=1, help="Per split; default: the policy's own, else 300.")] = None,
    rung: Annotated[int | None, typer.Option(help="Rung of the ladder, with --env.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, help="0 is greedy; default: the policy's own, else 0.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Of one reply.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Default: the policy's own, else 0.")] = None,
    engine: Annotated[str, typer.Option(help="torch, vllm, or openai with --url and POLICY as the server's model.")] = "torch",
    url: Annotated[str | None, typer.Option(help="Of an OpenAI-compatible server, e.g. http://127.0.0.1:8000/v1.")] = None,
    renderer: Annotated[str | None, typer.Option(help="Template of a model folder, where it does not say.")] = None,
    out: Annotated[Path | None, typer.Option(help="Keep the episodes in this store.")] = None,
    backend: Annotated[str | None, typer.Option(help="Where boxes come from; default: bubblewrap.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Worker processes; default: 2.")] = None,
    farm: Farm = None,
    json_: Json = False,
) -> None:
    """Success of a policy by split and environment, with 95 % intervals."""
    from rollout.eval_command import run_eval
    from rollout.places import Where

    run_eval(
        policy, envs=env or [], splits=split or [], episodes=episodes, rung=rung, temperature=temperature,
        max_tokens=max_tokens, seed=seed, engine=engine, url=url, renderer=renderer, out=out,
        where=Where(backend, workers, farm), as_json=json_,
    )  # fmt: skip


@app.command()
def replay(
    store: Annotated[Path, typer.Argument(help="A store, or a run directory that holds one.")],
    stage: Annotated[str | None, typer.Option(help="Only episodes of this stage.")] = None,
    episode: Annotated[str | None, typer.Option(help="Only this episode.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many episodes.")] = None,
    backend: Annotated[str, typer.Option(help="Where boxes come from.")] = "bubblewrap",
    workers: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 2,
    salvage: Salvage = False,
    json_: Json = False,
) -> None:
    """Run stored episodes again from their recorded actions and compare byte for byte. Exit code 1 where one differs."""
    from rollout.store_commands import run_replay

    run_replay(store, stage=stage, episode=episode, limit=limit, backend=backend, workers=workers, salvage=salvage, as_json=json_)


@app.command()
def export(
    store: Annotated[Path, typer.Argument(help="A store, or a run directory that holds one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder to write; it must be new or empty.")],
    to: Annotated[str, typer.Option(help="The format; `jsonl` is one episode per line.")] = "jsonl",
    stage: Annotated[str | None, typer.Option(help="Only episodes of this stage.")] = None,
    env: Annotated[str | None, typer.Option(help="Only episodes of this environment (its whole id).")] = None,
    policy: Annotated[
        str | None, typer.Option(help="Only rows that this policy sampled; default: all that were sampled.")
    ] = None,
    salvage: Salvage = False,
    json_: Json = False,
) -> None:
    """Write a store's episodes in a format of others."""
    from rollout.store_commands import run_export

    run_export(store, output, to=to, stage=stage, env=env, policy=policy, salvage=salvage, as_json=json_)


@store_app.command()
def check(
    store: Annotated[Path, typer.Argument(help="A store, or a run directory that holds one.")], json_: Json = False
) -> None:
    """Test every invariant and checksum of a store, and say where one does not hold. Exit code 1 then."""
    from rollout.store_commands import run_store_check

    run_store_check(store, as_json=json_)


@store_app.command()
def info(
    store: Annotated[Path, typer.Argument(help="A store, or a run directory that holds one.")],
    sql: Annotated[str | None, typer.Option(help="A DuckDB query over the tables instead.")] = None,
    json_: Json = False,
) -> None:
    """Count what a store holds, or ask it with SQL."""
    from rollout.store_commands import run_store_info

    run_store_info(store, sql=sql, as_json=json_)


@store_app.command()
def repair(
    store: Annotated[Path, typer.Argument(help="A store, or a run directory that holds one.")], json_: Json = False
) -> None:
    """Move damaged parts into `damaged/` inside the store, so that the rest can be read and written again."""
    from rollout.store_commands import run_store_repair

    run_store_repair(store, as_json=json_)
