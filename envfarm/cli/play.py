"""`envfarm play`: a person plays one instance in the terminal."""

from __future__ import annotations

from typing import Annotated

import typer

HELP = "Type an action. `?` lists the actions, `!` shows what the oracle would do, `q` stops and asks for the verdict."


def play(
    env: Annotated[str, typer.Argument(help="Environment id or YAML file.")],
    seed: Annotated[int, typer.Option(help="Which instance of the split, counted from 0.")] = 0,
    split: Annotated[str, typer.Option(help="train, validation, heldout or real.")] = "train",
    rung: Annotated[int | None, typer.Option(help="Rung of the ladder; default: the whole range.")] = None,
    backend: Annotated[str, typer.Option(help="Where boxes come from.")] = "bubblewrap",
) -> None:
    """Play one instance in the terminal, as an agent would see it."""
    from rich.console import Console

    from envfarm.cli.shared import instance_of, registry, setting
    from envfarm.session import Turn, local_session

    console = Console(highlight=False)
    spec = registry().get(env)
    instance = instance_of(spec, split, seed, setting(rung))
    session = local_session(spec, backend=backend)
    total = dict.fromkeys(spec.roles, 0.0)

    def show(turn: Turn) -> None:
        if turn.text:
            console.print(turn.text, markup=False)
        for role, value in turn.rewards.items():
            total[role] += value
            console.print(f"[yellow]reward {value:+.3f}[/yellow]" + (f" for {role}" if len(spec.roles) > 1 else ""))

    try:
        turn = session.reset(instance)
        console.print(f"[bold]{spec.title}[/bold]  {spec.id}, {split} {seed}, at most {session.turn_limit} turns")
        console.print(f"[dim]{HELP}[/dim]")
        tools = turn.tools
        show(turn)
        while not turn.over:
            prompt = f"{turn.role}> " if len(spec.roles) > 1 else "> "
            try:
                line = console.input(prompt).strip()
            except EOFError:
                line = "q"
            if line == "?":
                for tool in tools:
                    console.print(f"  {tool.signature}   {tool.description}", markup=False)
            elif line == "!":
                console.print(f"  {session.oracle()}", markup=False)
            else:
                turn = session.finish("agent_stopped") if line == "q" else session.step(line)
                tools = turn.tools or tools
                show(turn)
        solved = min(total.values()) >= spec.reward.solved_at
        console.print(f"[bold]{turn.stop}[/bold]: reward {total}" + (", solved" if solved and len(spec.roles) == 1 else ""))
    finally:
        session.close()
