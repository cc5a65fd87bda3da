"""Tokenizers: exact, deterministic, and deaf to special tokens that text spells."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envfarm.errors import UserError
from rollout.tokenizers import SPECIAL_TOKENS, BPETokenizer, HFTokenizer

TEXTS = ["You see a door to the north and 12 keys.\n", "go north", "add article 37 to the cart\n", "ls /task/logs"] * 4
BPE = BPETokenizer.train(TEXTS, vocab_size=330)
SPECIALS = {BPE.special(t) for t in SPECIAL_TOKENS}


@settings(max_examples=200, deadline=None)
@given(st.text() | st.lists(st.sampled_from([*SPECIAL_TOKENS, " ", "<|", "|>", "north"])).map("".join))
def test_any_text_comes_back_and_never_becomes_a_special_token(text: str) -> None:
    ids = BPE.encode(text)
    assert BPE.decode(ids) == text
    assert SPECIALS.isdisjoint(ids)
    assert all(0 <= i < BPE.vocab_size for i in ids)


def test_special_tokens_have_ids_of_their_own_and_are_left_out_of_text() -> None:
    assert sorted(SPECIALS) == list(range(len(SPECIAL_TOKENS)))
    ids = [BPE.special("<|act|>"), *BPE.encode("go north"), BPE.special("<|end|>")]
    assert BPE.decode(ids) == "go north"
    with pytest.raises(KeyError, match=r"<\|none\|>"):
        BPE.special("<|none|>")


def test_frequent_words_are_one_token_and_digits_stand_alone() -> None:
    assert len(BPE.encode(" north")) == 1
    for number in ("7", "37", "12"):
        tail = BPE.encode(number)
        assert len(tail) == len(number)
        assert BPE.encode(f"article {number}")[-len(number) :] == tail == BPE.encode(f"[{number}")[-len(number) :]


def test_training_does_not_depend_on_order_process_or_hash_seed() -> None:
    program = (
        "import sys, json; from rollout.tokenizers import BPETokenizer\n"
        "print(BPETokenizer.train(json.loads(sys.stdin.read())[::-1], vocab_size=330).hash)"
    )
    for hash_seed in ("1", "2"):
        out = subprocess.run(
            [sys.executable, "-c", program], input=json.dumps(TEXTS), capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONHASHSEED": hash_seed}, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert out.stdout.strip() == BPE.hash


def test_save_and_load_are_inverse_and_transformers_reads_it(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    BPE.save(tmp_path)
    loaded = BPETokenizer.load(tmp_path)
    text = "add article 37 <|act|> ü\n"
    assert loaded.hash == BPE.hash and loaded.vocab_size == BPE.vocab_size and loaded.encode(text) == BPE.encode(text)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs.encode("go north to 12", add_special_tokens=False) == BPE.encode("go north to 12")
    assert theirs.convert_tokens_to_ids("<|act|>") == BPE.special("<|act|>")


def test_another_text_another_hash() -> None:
    assert BPETokenizer.train([*TEXTS, "south south south"], vocab_size=330).hash != BPE.hash


def test_a_folder_whose_vocabulary_spells_special_tokens_is_still_deaf(tmp_path: Path) -> None:
    """Some models hold their special tokens as whole words of the vocabulary, found without any merge."""
    words = {w: i for i, w in enumerate(["<s>", "<", "s", ">", "a", "<think>"])}
    document = {
        "version": "1.0",
        "added_tokens": [_added("<s>", 0, special=True), _added("<think>", 5, special=False)],
        "model": {"type": "BPE", "vocab": words, "merges": [], "ignore_merges": True},
        "truncation": None, "padding": None, "normalizer": None, "pre_tokenizer": None, "post_processor": None, "decoder": None,
    }  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = HFTokenizer(tmp_path)
    assert tokenizer.encode("<s>") == [1, 2, 3]
    assert tokenizer.encode("a<s>a<s>") == [4, 1, 2, 3, 4, 1, 2, 3]
    assert tokenizer.encode("<think>") == [5]  # added, but not special: ordinary text to its template


def _added(content: str, number: int, *, special: bool) -> dict[str, object]:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": content, "special": special, **flags}


def test_bad_files_and_sizes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no tokenizer at"):
        HFTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="damaged"):
        HFTokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": {}}')
    with pytest.raises(UserError, match="not a tokenizer"):
        HFTokenizer(tmp_path)
    with pytest.raises(UserError, match="cannot hold 256 bytes"):
        BPETokenizer.train(TEXTS, vocab_size=200)
