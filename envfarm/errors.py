"""Every error that envfarm raises on purpose.

    EnvfarmError
    ├── UserError                 what a person can mend: printed without a traceback, exit code 2
    │   ├── SpecError             an environment's YAML, with file:line:column
    │   ├── RunFileError          a run file's YAML, with file:line:column
    │   ├── FarmFileError         a farm's YAML, with file:line:column
    │   ├── UnknownIdError        no environment of that id (near matches named)
    │   ├── MissingDependencyError  a package or program that must be installed (which command installs it)
    │   ├── CapabilityError       an engine or backend cannot do what the run needs
    │   ├── BoxUnavailableError   no box can be made on this machine (which setting or package)
    │   │   └── NoRoomError       not now: a quota, or every node, is full; whoever asked may wait
    │   ├── StoreError            not a store, damaged, or of another schema version
    │   ├── RunLockedError        another trainer holds this run directory
    │   └── RunHaltedError        too many episodes failed: the error budget is spent
    └── EpisodeError              ended one episode; carries the status that it is recorded under
        ├── EnvironmentFault      the environment's own code raised: `env_error`
        ├── VerifierFault         the verifier raised or gave a non-finite or out-of-range reward: `verifier_error`
        └── InfraError            an unexplained death or a starved machine: `infra_error`, retried
            ├── WorkerDied
            └── BoxDied

`AgentLimit` is no error: what the agent's own command brought on itself is an outcome of the command
(`envfarm.box.ExecResult.limit`) and ends, if the environment says so, in `StopReason.AGENT_LIMIT`.
"""

from __future__ import annotations

import difflib
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Location:
    """A place in a file; line and column count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class EnvfarmError(Exception):
    """Base of the tree. Picklable: arguments are kept as given."""


def raised_at(error: BaseException | None, below: Path | None = None) -> Location | None:
    """Where the code that raised stands: the innermost frame, of those in files below that folder. None without one."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    frames = [f for f in frames if below is None or Path(f.filename).is_relative_to(below)]
    return Location(frames[-1].filename, frames[-1].lineno or 1, (frames[-1].colno or 0) + 1) if frames else None


class UserError(EnvfarmError):
    """Something that the person at the keyboard can mend. The message says what came, what was expected, what to do."""

    exit_code = 2

    def __init__(self, message: str, location: Location | None = None):
        super().__init__(message, location)
        self.message = message
        self.location = location

    def __str__(self) -> str:
        return f"{self.location}: {self.message}" if self.location else self.message


class SpecError(UserError):
    pass


class RunFileError(UserError):
    pass


class FarmFileError(UserError):
    pass


class UnknownIdError(UserError):
    pass


class MissingDependencyError(UserError):
    pass


class CapabilityError(UserError):
    pass


class BoxUnavailableError(UserError):
    pass


class NoRoomError(BoxUnavailableError):
    pass


class StoreError(UserError):
    pass


class RunLockedError(UserError):
    pass


class RunHaltedError(UserError):
    pass


class EpisodeError(EnvfarmError):
    """Ends one episode. `status` is the name of the `rollout.types.StopReason` that it is recorded under."""

    status = "infra_error"


class EnvironmentFault(EpisodeError):
    status = "env_error"


class VerifierFault(EpisodeError):
    status = "verifier_error"


class InfraError(EpisodeError):
    status = "infra_error"


class WorkerDied(InfraError):
    pass


class BoxDied(InfraError):
    pass


def first_failure(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The exception that broke a task group, out of nested groups."""
    error: BaseException = failures
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


NEAR_TIE = 0.05
"""How much less alike (of 1.0) than the best match a name may be and still be suggested beside it."""


def near_matches(name: str, known: Iterable[str], limit: int = 3) -> list[str]:
    """The known name closest to `name`, and those that are all but as close; best first."""
    matcher = difflib.SequenceMatcher(b=name)
    scores: list[tuple[float, str]] = []
    for candidate in dict.fromkeys(known):
        matcher.set_seq1(candidate)
        scores.append((matcher.ratio(), candidate))
    best = max((score for score, _ in scores), default=0.0)
    near = [(score, candidate) for score, candidate in scores if score >= max(0.5, best - NEAR_TIE)]
    return [candidate for _, candidate in sorted(near, key=lambda s: -s[0])[:limit]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" (did you mean 'x'?)"`, or an empty string where nothing is near."""
    found = near_matches(name, known)
    return f" (did you mean {' or '.join(repr(f) for f in found)}?)" if found else ""
