"""`envfarm show`: one instance, rendered as an agent would find it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from envfarm.cli.shared import complete_id

if TYPE_CHECKING:
    from envfarm.spec import EnvSpec, Instance

MAX_SHOWN_BYTES = 4096
"""Of each of the box's files, in --json."""


def show(
    env: Annotated[str, typer.Argument(help="Environment id, YAML file or folder.", autocompletion=complete_id)],
    seed: Annotated[int, typer.Option(help="Which instance of the split, counted from 0.")] = 0,
    split: Annotated[str, typer.Option(help="train, validation, heldout or real.")] = "train",
    rung: Annotated[int | None, typer.Option(help="Rung of the ladder; default: the whole range.")] = None,
    narrowed: Annotated[list[str] | None, typer.Option("--set", help="AXIS=VALUE, repeatable: modules=[1,2].")] = None,
    perturb: Annotated[str | None, typer.Option(help="off: no perturbation channels.")] = None,
    backend: Annotated[str, typer.Option(help="Where boxes come from.")] = "bubblewrap",
    as_json: Annotated[bool, typer.Option("--json", help="Print as JSON.")] = False,
) -> None:
    """Show one instance: its parameters, the first observation, the tools, and the box's files."""
    from envfarm.cli.shared import instance_of, registry, setting

    spec = registry().get(env)
    shown = rendered(spec, instance_of(spec, split, seed, setting(rung, narrowed or (), perturb)), backend)
    if as_json:
        print(json.dumps(shown, indent=2))
    else:
        _print(spec, shown)


def rendered(spec: EnvSpec, instance: Instance, backend: str) -> dict[str, Any]:
    """The instance and what an agent sees first, as JSON values."""
    import msgspec

    from envfarm.registry import make_scene
    from envfarm.session import local_session

    scene = make_scene(spec)
    session = local_session(spec, scene=scene, backend=backend)
    try:
        turn = session.reset(instance)
        files = [] if scene.box is None else _files(scene.box, spec.sandbox.writable)
    finally:
        session.close()
    return {
        "id": spec.id, "hash": instance.hash, "instance": msgspec.to_builtins(instance), "role": turn.role,
        "observation": turn.text, "blocks": msgspec.to_builtins(turn.blocks),
        "tools": [tool.as_mcp() for tool in turn.tools], "signatures": [tool.signature for tool in turn.tools], "files": files,
    }  # fmt: skip


def _files(box: Any, writable: Sequence[str]) -> list[dict[str, Any]]:
    """By path: relative to the workdir, absolute elsewhere."""
    elsewhere = [(f"{place}/{entry.path}", entry) for place in writable for entry in box.list(place)]
    return [_file(box, path, entry) for path, entry in [*((entry.path, entry) for entry in box.list()), *elsewhere]]


def _file(box: Any, path: str, entry: Any) -> dict[str, Any]:
    shown: dict[str, Any] = {"path": path, "kind": entry.kind, "size": entry.size, "mode": f"{entry.mode:o}"}
    if entry.kind == "file" and entry.size <= MAX_SHOWN_BYTES:
        shown["text"] = box.read(path).decode("utf-8", "replace")
    return shown


def _print(spec: EnvSpec, shown: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    instance = shown["instance"]

    def heading(text: str) -> None:
        console.print(f"\n[bold]{text}[/bold]")

    def pairs(values: dict[str, Any]) -> None:
        width = max((len(name) for name in values), default=0)
        for name, value in values.items():
            console.print(f"  {name:<{width}}  {json.dumps(value)}", markup=False, soft_wrap=True)

    where = f"row {instance['row_key']}" if instance["seed"] is None else f"seed {instance['seed']}"
    console.print(f"[bold]{spec.id}[/bold]  {spec.title}\n{instance['split']}, {where}, instance {shown['hash'][:16]}")
    for title in ("params", "perturbation", "setting", "row"):
        if instance[title]:
            heading(title)
            pairs(instance[title])
    heading(f"first observation of {shown['role']}")
    console.print(shown["observation"], markup=False, soft_wrap=True)
    heading("tools")
    for tool, signature in zip(shown["tools"], shown["signatures"], strict=True):
        console.print(f"  {signature}   {tool['description']}", markup=False, soft_wrap=True)
    if spec.sandbox.box:
        heading("files in the box")
        for file in shown["files"]:
            console.print(f"  {file['mode']:>4} {file['size']:>8}  {file['path']}", markup=False, soft_wrap=True)
