"""The one command, `envfarm`: assembled from what each package registers under the entry-point group `envfarm.commands`.

Modules that hold commands are light: what is heavy is imported inside of the functions, so that `envfarm --help` is
instant. What a person can mend is printed as `error: file:line:column: ...` with exit code 2; Ctrl-C exits with 130.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Annotated

import typer

from envfarm.errors import EpisodeError, UserError, raised_at

GROUP = "envfarm.commands"
PATH_VARIABLE = "ENVFARM_PATH"
TRACEBACK_VARIABLE = "ENVFARM_TRACEBACK"
"""Set to anything: errors are printed with their traceback, for authors of environments."""


def _common(
    env_path: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help=f"A folder of environments; repeatable. Also {PATH_VARIABLE}.", show_default=False),
    ] = None,
) -> None:
    """Sim2Real for language-model agents: randomized, sandboxed task environments, token-exact rollouts, training."""
    if env_path:
        # In the process's environment, so that worker processes find the same environments.
        known = [p for p in os.environ.get(PATH_VARIABLE, "").split(os.pathsep) if p]
        os.environ[PATH_VARIABLE] = os.pathsep.join([*(str(p.resolve()) for p in env_path), *known])


def assemble() -> typer.Typer:
    """All registered commands as one app, in the order of the entry points' names."""
    app = typer.Typer(
        name="envfarm", callback=_common, no_args_is_help=True, pretty_exceptions_enable=False,
        rich_markup_mode=None,  # importing rich's Markdown for --help takes longer than everything else together
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    for point in sorted(entry_points(group=GROUP), key=lambda p: p.name):
        part = _load(point)
        if part is not None:
            app.registered_commands.extend(part.registered_commands)
            app.registered_groups.extend(part.registered_groups)
    return app


def _load(point: EntryPoint) -> typer.Typer | None:
    try:
        return getattr(import_module(point.module), point.attr)
    except ModuleNotFoundError as problem:
        if problem.name is None or not point.module.startswith(problem.name):
            raise
        print(f"warning: the commands {point.name!r} are missing: there is no {problem.name}", file=sys.stderr)
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line. Always ends in SystemExit."""
    try:
        assemble()(args=None if arguments is None else list(arguments), prog_name="envfarm")
    except UserError as error:
        _stop(str(error), error.exit_code)
    except EpisodeError as error:
        _stop(f"{error}{_author_place(error)}", 2)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _stop(f"no space is left on the disk{f' for {error.filename}' if error.filename else ''}; what was stored is kept", 2)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # pressed again, it would break into the interpreter's end
        sys.exit(130)
    sys.exit(0)


def _stop(message: str, code: int) -> None:
    if os.environ.get(TRACEBACK_VARIABLE):
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


def _author_place(error: BaseException) -> str:
    """Where an environment's own code raised, if that is what happened."""
    place = raised_at(error.__cause__)
    return f" (at {place}; set {TRACEBACK_VARIABLE}=1 for the traceback)" if place else ""
