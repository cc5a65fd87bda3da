"""docs/trainers/trl.md, tinker.md and your_own_loop.md, followed to the letter with fewer steps and a tiny model."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from envfarm.cli import main
from rollout.export import export, exporter
from rollout.export.base import played
from rollout.store import Store
from tests.trainer.adapters.conftest import Farm

ROOT = Path(__file__).resolve().parents[3]
pytestmark = [pytest.mark.trl, pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.usefixtures("one_thread")]


def page(document: str, name: str) -> str:
    """One file of a page, its run cut short."""
    text = (ROOT / "docs" / "trainers" / document).read_text("utf-8")
    fences = dict(re.findall(r"^```python (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    quiet = "use_cpu=True, bf16=False, report_to=[], save_strategy='no', dataloader_pin_memory=False, disable_tqdm=True"
    code = fences[name].replace("max_steps=100", f"max_steps=2, {quiet}").replace("num_generations=8", "num_generations=4")
    return code.replace("per_device_train_batch_size=32", "per_device_train_batch_size=8").replace("dataset(512)", "dataset(8)")


def commands(document: str) -> list[list[str]]:
    """The `envfarm` lines of a page."""
    text = (ROOT / "docs" / "trainers" / document).read_text("utf-8")
    fences = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    lines = [line.partition("#")[0].split() for fence in fences for line in fence.splitlines()]
    return [line[1:] for line in lines if line and line[0] == "envfarm"]


@pytest.fixture
def here(farm: Farm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with `model`, as the pages have it: 512 tokens of context and ChatML as Qwen3 writes it."""
    import trl

    from tests.trainer.adapters.trl_models import fast_tokenizer, tiny

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    tiny("qwen3", farm.tokenizer.vocab_size, tmp_path / "model", length=4096)
    fast_tokenizer(farm.tokenizer, tmp_path / "model", template=template)
    yield tmp_path


def run(document: str, name: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": name}
    exec(compile(page(document, name), name, "exec"), names)
    return names


def test_the_commands_and_sft(here: Path) -> None:
    for command in commands("trl.md"):
        small = ["16" if word == "256" else word for word in command]
        with pytest.raises(SystemExit) as ended:
            main(small)
        assert ended.value.code in (0, None)
    assert {p.name for p in Path("sft").iterdir()} == {"messages.jsonl", "replies.jsonl"}
    assert Path("dpo/pairs.jsonl").stat().st_size and Path("kto/replies.jsonl").stat().st_size
    assert len(run("trl.md", "sft.py")["trainer"].state.log_history) > 0
    assert Path("trained/model.safetensors").is_file()


def test_exact(here: Path, farm: Farm) -> None:
    export(exporter("trl-dpo"), played(Store.open(farm.store).episodes()), Path("pairs"))
    assert run("trl.md", "exact.py")["trainer"].state.global_step == 2


def test_grpo(here: Path) -> None:
    trainer = run("trl.md", "grpo.py")["trainer"]
    assert trainer.state.global_step == 2
    assert len(list(Store.open("grpo-store").episodes())) == 16


def test_tools(here: Path) -> None:
    trainer = run("trl.md", "tools.py")["trainer"]
    assert any("rewards/Maze/mean" in entry for entry in trainer.state.log_history)


def test_a_loop_of_ones_own(here: Path, farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    farm.model.save("model")  # the one that sampled the store
    Path("store").symlink_to(farm.store)
    run("your_own_loop.md", "loop.py")
    losses = [float(line.split()[1]) for line in capsys.readouterr().out.splitlines()]
    assert len(losses) == 3 and losses[2] < losses[1] < losses[0]


def test_a_live_loop_of_ones_own(here: Path, farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    farm.model.save("model")
    asyncio.run(run("your_own_loop.md", "live.py")["main"]())
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]


# Tinker, with a service that is scripted and speaks the SDK's types.


class Sampler:
    """Walks about; which way depends on prompt and seed."""

    def __init__(self, service: Service, number: int):
        self.service, self.number = service, number

    async def sample(self, prompt: Any, num_samples: int, sampling_params: Any) -> Any:
        import tinker

        self.service.asked.append((self.number, prompt.to_ints(), sampling_params))
        way = ("north", "east", "south", "west")[sampling_params.seed % 4]
        ids = self.service.farm.tokenizer.encode(f"move {way}")[: sampling_params.max_tokens - 1] + list(sampling_params.stop)[:1]
        said = tinker.SampledSequence("stop", "s", tokens_np=np.array(ids), logprobs_np=np.full(len(ids), -0.5, np.float32))
        return tinker.SampleResponse([said])


class Service:
    """Service and training client in one."""

    def __init__(self, farm: Farm, tokenizer: Any):
        self.farm, self.tokenizer = farm, tokenizer
        self.asked: list[Any] = []
        self.trained: list[tuple[list[Any], str]] = []
        self.saved, self.steps = 0, 0

    def create_lora_training_client(self, base_model: str, rank: int) -> Service:
        return self

    def save_weights_and_get_sampling_client(self) -> Sampler:
        self.saved += 1
        return Sampler(self, self.saved - 1)

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def forward_backward(self, data: list[Any], loss: str) -> None:
        self.trained.append((data, loss))

    def optim_step(self, params: Any) -> Any:
        from concurrent.futures import Future

        done: Future[None] = Future()
        done.set_result(None)
        self.steps += 1
        return done


def test_tinker_live(here: Path, farm: Farm, capsys: pytest.CaptureFixture[str]) -> None:
    import tinker
    from transformers import AutoTokenizer

    service = Service(farm, AutoTokenizer.from_pretrained("model"))
    asyncio.run(run("tinker.md", "live.py")["main"](service, steps=2))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["0", "1"]
    assert service.saved == 3 and {number for number, *_ in service.asked} == {0, 1}, "each step asks the newest weights"
    assert service.trained and service.steps == len(service.trained)
    for data, loss in service.trained:
        assert loss == "importance_sampling" and all(isinstance(d, tinker.Datum) for d in data)
        for d in data:
            inputs = {k: v.to_numpy() for k, v in d.loss_fn_inputs.items()}
            spoken = inputs["logprobs"] != 0
            assert spoken.any() and not inputs["advantages"][~spoken].any() and np.allclose(inputs["logprobs"][spoken], -0.5)
            assert "move" in farm.tokenizer.decode(inputs["target_tokens"][spoken].tolist())
