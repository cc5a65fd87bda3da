"""The conformance suite for backends: what every box must do, whatever it is made of. Public; our tests run it over all.

`check_backend(backend)` gives one `Finding` per check, each made in fresh boxes with small limits. A check is a coroutine
that returns a line of detail and fails by raising `Failed`. A new check costs one function and one line of `CHECKS`;
the checks themselves are in `backend_checks_shell.py`, `..._limits.py`, `..._files.py` and `..._isolation.py`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from envfarm.box import Backend
from envfarm.errors import InfraError
from envfarm.testing import (
    backend_checks_files,
    backend_checks_isolation,
    backend_checks_limits,
    backend_checks_shell,
)
from envfarm.testing.backend_checks import Bench, Check, Failed

CHECKS: dict[str, Check] = {
    **backend_checks_shell.CHECKS,
    **backend_checks_files.CHECKS,
    **backend_checks_limits.CHECKS,
    **backend_checks_isolation.CHECKS,
}


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    backend: str
    check: str
    ok: bool
    detail: str


async def check_backend(
    backend: Backend, *, image: str = "envfarm/base", only: Iterable[str] | None = None, patience: float = 1.0
) -> list[Finding]:
    """Run the checks, in order. `patience` stretches the boxes' time limits, for backends on which everything is slow.
    Raises BoxUnavailableError where the backend cannot make a box at all."""
    await backend.probe()
    findings = []
    for name in CHECKS if only is None else only:
        bench = Bench(backend, image, patience)
        try:
            detail, ok = await CHECKS[name](bench), True
        except (Failed, InfraError, OSError, ValueError) as error:
            detail, ok = f"{type(error).__name__}: {error}", False
        finally:
            await bench.close()
        findings.append(Finding(backend.name, name, ok, detail))
    return findings
