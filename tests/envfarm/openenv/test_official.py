"""Unmodified servers of the `openenv` package, and a worker of ours, as environments."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from openenv.cli.__main__ import app as openenv_cli
from typer.testing import CliRunner

from envfarm.errors import InfraError, UserError
from envfarm.session import local_session
from envfarm.spec import load_spec
from tests.envfarm.openenv.servers import official, spec_of
from tests.envfarm.worker.helpers import LAMP, running, session

pytestmark = pytest.mark.timeout(900)  # their servers take seconds of CPU time to start, and a busy machine has few


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """What `openenv init` makes, served as its README says."""
    folder = tmp_path_factory.mktemp("echo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")  # it would lock the dependencies of its example, which takes a network
        made = CliRunner().invoke(openenv_cli, ["init", "echo", "--output-dir", str(folder)])
    assert made.exit_code == 0, made.output
    with official("-m", "uvicorn", "server.app:app", "--port", "0", cwd=folder / "echo") as url:
        yield url


def test_what_openenv_init_makes_is_an_environment(echo: str, tmp_path: Path) -> None:
    spec = spec_of(tmp_path, echo, turns=3)
    played = local_session(spec)
    first = played.reset(spec.instance("train", 0))
    assert "environment ready!" in first.text and not first.rewards
    assert [tool.signature for tool in first.tools] == ["step <message>"] and first.text_tool == "step"
    said = played.step("four")
    assert "four" in said.text and said.rewards == {"agent": 0.4} and not said.over
    other = local_session(spec)
    with pytest.raises(InfraError, match="CAPACITY_REACHED"):  # the template serves one session
        other.reset(spec.instance("train", 1))
    other.close()
    played.step("more than ten letters")
    assert played.step("last").stop == "turn_limit"
    played.close()


def test_mcp_tools_rewards_and_the_end_are_the_server_s(tmp_path: Path) -> None:
    with official(str(Path(__file__).with_name("tool_server.py"))) as url:
        spec = spec_of(tmp_path, url, "randomize: {add: {constant: 4}}\n")
        played = local_session(spec)
        (tool,) = played.reset(spec.instance("train", 3)).tools
        assert tool.signature == "guess <number> [mood: calm|wild]" and tool.description == "Guess the number."
        wrong = played.step("guess 1")
        assert wrong.text == "higher" and wrong.rewards == {"agent": 0.0} and not wrong.over
        assert played.step("guess one").malformed
        right = played.step("guess 7")  # seed 3, and 4 that the YAML adds
        assert right.text == "right" and right.rewards == {"agent": 1.0} and right.stop == "terminated"
        again = played.reset(spec.instance("train", 4))
        assert not again.over and played.step("guess 8").stop == "terminated"
        played.close()


def test_a_worker_of_ours_played_through_another_gives_the_same_episode(tmp_path: Path) -> None:
    """All in one event loop: a session that waited in it for the other worker would wait forever."""

    async def play() -> None:
        lamp = load_spec(LAMP)
        async with running(lamp) as (_, url):
            remote = spec_of(tmp_path, url, "randomize: {setting: {constant: {perturb: 'off'}}}\n")
            async with running(remote) as (_, through):
                ours, theirs = await session(url, lamp), await session(through, remote)
                direct = await ours.reset(lamp.instance("train", 5, {"perturb": "off"}))
                turn = await theirs.reset(remote.instance("train", 5))
                assert turn.text == direct.text and turn.tools == direct.tools
                for action in ("juggle", await ours.oracle(), "switch"):
                    direct, turn = await ours.step(action), await theirs.step(action)
                    assert turn.malformed == direct.malformed
                    assert turn.rewards.get("agent", 0.0) == direct.rewards.get("agent", 0.0)
                    assert turn.malformed or turn.text == direct.text
                assert turn.over and turn.rewards == {"agent": 1.0}
                await ours.close()
                await theirs.close()

    asyncio.run(play())


def test_a_token_comes_from_the_environment_and_stands_in_no_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        async with running(load_spec(LAMP), token="open sesame/&") as (_, url):
            with_token = spec_of(tmp_path, url.replace("http://", "http://:${LAMP_TOKEN}@"))
            instance = with_token.instance("train", 0)
            played = local_session(with_token)
            with pytest.raises(UserError, match="LAMP_TOKEN, which is not set"):
                await asyncio.to_thread(played.reset, instance)
            monkeypatch.setenv("LAMP_TOKEN", "wrong")
            with pytest.raises(UserError, match="wants a token"):
                await asyncio.to_thread(played.reset, instance)
            monkeypatch.setenv("LAMP_TOKEN", "open sesame/&")
            assert (await asyncio.to_thread(played.reset, instance)).text
            assert "sesame" not in with_token.to_json()
            await asyncio.to_thread(played.close)

    asyncio.run(play())
