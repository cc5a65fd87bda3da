"""Every attempt of the hostile panel on every backend, as docs/hostile.md has it; and that the panel can fail."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from envfarm.backends import bubblewrap, seccomp
from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.backends.bubblewrap_box import BubblewrapBox
from envfarm.backends.local import backend_class
from envfarm.box import BoxSpec, Snapshot
from envfarm.errors import UserError
from envfarm.hostile import cheat
from envfarm.hostile.attempt import Outcome
from envfarm.hostile.panel import ATTEMPTS, named, panel
from envfarm.spec import load_spec
from tests import testbed
from tests.envfarm.backends.shared import Shared
from tests.envfarm.hostile.helpers import played, played_on, told

REPOSITORY = Path(__file__).parents[3]


def test_the_page_lists_the_panel() -> None:
    assert {name: row["what the agent tries"] for name, row in told().items()} == {a.name: a.tried for a in ATTEMPTS.values()}
    assert len(ATTEMPTS) >= 30


@pytest.mark.box
@pytest.mark.parametrize("name", ATTEMPTS)
def test_on_bubblewrap(name: str) -> None:
    finding = played(BubblewrapBackend, name)
    assert finding.outcome == told()[name]["bubblewrap"], finding


AS_NOBODY = """
import encodings.idna, os, sys
import msgspec
from envfarm.backends import seccomp
from envfarm.backends.bubblewrap import BubblewrapBackend
from envfarm.hostile.cheat import vault
from envfarm.worker.sessions import preload
from tests import testbed
from tests.envfarm.hostile.helpers import played
seccomp.program(); preload(vault())
os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
print(msgspec.json.encode(played(BubblewrapBackend, sys.argv[1], "envfarm/base")).decode())
"""


@pytest.mark.box
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
@pytest.mark.parametrize("name", ATTEMPTS)
def test_on_bubblewrap_as_an_ordinary_user(name: str) -> None:
    """The modules are loaded as root, whose home may hide the interpreter; the boxes are nobody's, with the system's python3."""
    command, variables = [sys.executable, "-c", AS_NOBODY, name], testbed.with_the_hosts_root()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    finding = json.loads(done.stdout)
    assert finding["outcome"] == told()[name]["bubblewrap"], finding


@pytest.mark.timeout(900)  # a system call costs some thirty times more in gVisor
@pytest.mark.parametrize("name", ATTEMPTS)
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("docker-runsc", marks=pytest.mark.docker),
        pytest.param("kubernetes", marks=pytest.mark.kubernetes),
    ],
)
def test_on_a_remote_backend(shared: Shared, backend: str, name: str) -> None:
    if backend == "docker-runsc":
        testbed.require_gvisor()
    finding = shared(backend_class(backend), lambda made: played_on(made, name))
    assert finding.outcome == told()[name][backend], finding


# --- the panel can fail -----------------------------------------------------------------------------------------------


class Liar(BubblewrapBackend):
    """Says that it enforces what a test took away from it."""

    def enforcement(self) -> dict[str, str]:
        return {"syscalls": "seccomp", "network": "network namespace"}


@pytest.mark.box
@pytest.mark.parametrize("name", ["sockets out", "abstract sockets"])
def test_a_shared_network_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bubblewrap, "NAMESPACES", tuple(a for a in bubblewrap.NAMESPACES if a != "--unshare-net"))
    assert played(Liar, name).outcome is Outcome.SUCCEEDED


@pytest.mark.box
def test_a_missing_filter_is_noticed_or_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seccomp, "program", lambda: None)
    assert played(Liar, "keyrings").outcome is Outcome.SUCCEEDED
    declared = played(BubblewrapBackend, "keyrings")
    assert declared.outcome is Outcome.NOT_ENFORCED and "libseccomp is not installed" in declared.by


@pytest.mark.box
def test_a_leaked_answer_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Path(cheat.__file__).parent / "vault"
    leak = '        self.place.write("/tmp/left", " ".join(self.codes.values()).encode())\n        return f"Write'
    (tmp_path / "vault.py").write_text((source / "vault.py").read_text().replace('        return f"Write', leak))
    (tmp_path / "vault.yaml").write_text(
        (source / "vault.yaml").read_text().replace("floor: {uniform_int: [1, 99]}", "floor: {constant: 1}")
    )
    spec = load_spec(tmp_path / "vault.yaml")
    monkeypatch.setattr(cheat, "vault", lambda: spec)
    finder = cheat.Cheat(
        "finder", "", "", (r"""echo "set -- $(cat /tmp/left); read n; [ \$n = ada ] && echo \$1 || echo \$2" >answer.sh""",)
    )
    monkeypatch.setitem(ATTEMPTS, "finder", finder)
    finding = played(BubblewrapBackend, "finder")
    assert (finding.outcome, finding.by) == (Outcome.SUCCEEDED, "was paid")


class Dying(BubblewrapBackend):
    async def start(self, spec: BoxSpec, *, owner: str = "", snapshot: Snapshot | None = None) -> BubblewrapBox:
        box = await super().start(spec, owner=owner, snapshot=snapshot)
        await box.stop()
        return box


@pytest.mark.box
@pytest.mark.parametrize("name", ["endless sleep", "keyrings", "killing process 1"])
def test_what_is_blamed_on_the_farm_counts_as_a_success(name: str) -> None:
    finding = played(Dying, name)
    assert finding.outcome is Outcome.SUCCEEDED and finding.recorded == "infra_error"


@pytest.mark.box
def test_somebody_can_be_paid() -> None:
    async def main() -> list[Any]:
        backend = BubblewrapBackend()
        try:
            return [finding async for finding in panel(backend, ["symbolic links"])]
        finally:
            await backend.close()

    assert [f.outcome for f in asyncio.run(main())] == [Outcome.STOPPED]


# --- the command ------------------------------------------------------------------------------------------------------


def envfarm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from envfarm.cli import main; main()", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.mark.box
def test_the_command() -> None:
    done = envfarm("check", "--hostile", "--only", "endless sleep", "--only", "abstract sockets", "--json")
    assert done.returncode == 0, done.stderr
    assert [(f["attempt"], f["outcome"]) for f in json.loads(done.stdout)] == [
        ("endless sleep", "stopped"),
        ("abstract sockets", "stopped"),
    ]
    assert "2 attempts, 2 stopped, 0 not enforced here, 0 SUCCEEDED" in done.stderr


def test_bad_input_is_refused() -> None:
    with pytest.raises(UserError, match="did you mean 'fork bomb'"):
        named("fork bom")
    done = envfarm("check", "--hostile", "coding/shell-v0")
    assert (done.returncode, "tries a backend, not an environment" in done.stderr) == (2, True)
    done = envfarm("check")
    assert (done.returncode, "which environments?" in done.stderr) == (2, True)
