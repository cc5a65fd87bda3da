"""Tokenizers: one trained here for tiny models, or one from a Hugging Face folder. Both need only `tokenizers`.

Text and special tokens are two worlds: `encode` knows ordinary text alone, so a special token spelled in a web page or
a file becomes the letters it is written with; only a renderer puts special tokens in, by id. Tokens that a folder
adds without calling them special (`<think>`, `<tool_call>` of some models) stay ordinary text, as their templates need.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from envfarm.errors import UserError
from envfarm.seeding import stable_hash

FILE, CONFIG_FILE = "tokenizer.json", "tokenizer_config.json"

BESIDE = (CONFIG_FILE, "chat_template.jinja")
"""What else a folder says about its tokenizer; kept as it is."""

SPECIAL_TOKENS = ("<|pad|>", "<|obs|>", "<|act|>", "<|end|>", "<|im_start|>", "<|im_end|>")
"""What our own tokenizers carry, so that each of our renderers works with them."""

_PIECES = r" ?\p{L}+|\d|\n| ?[^\s\p{L}\d]+|[^\S\n]+"
"""How text is cut before merging: words and punctuation with the space before them, each digit alone, each line break
alone. A number is then always the same tokens, wherever it stands: what a small model must copy looks the same."""


class HFTokenizer:
    """The `tokenizer.json` of a folder (or the file itself)."""

    _beside: dict[str, str] = {}  # file name -> content, of a folder's

    def __init__(self, folder: str | Path):
        """Raises: UserError where there is no such file or it is damaged."""
        path = Path(folder)
        path = path if path.suffix == ".json" else path / FILE
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"no tokenizer at {path}; a file {FILE} was expected, as Transformers saves it") from None
        except (json.JSONDecodeError, UnicodeDecodeError) as e:
            raise UserError(f"{path}: damaged tokenizer: {e}") from None
        self._adopt(document, str(path))
        self._beside = {n: f.read_text(encoding="utf-8") for n in BESIDE if (f := path.parent / n).is_file()}

    def _adopt(self, document: dict[str, Any], where: str) -> None:
        added = document.get("added_tokens") or []
        plain = dict(document, added_tokens=[t for t in added if not t.get("special")], post_processor=None)
        plain.update(padding=None, truncation=None)
        try:
            self._text = Tokenizer.from_str(json.dumps(plain))
            self._full = Tokenizer.from_str(json.dumps(document))
        except Exception as e:  # `tokenizers` raises bare Exception
            raise UserError(f"{where}: not a tokenizer that this version of `tokenizers` reads: {e}") from None
        self._specials = {t["content"]: t["id"] for t in added if t.get("special")}
        self._special_ids = frozenset(self._specials.values())
        self._document = document
        self.vocab_size = max(self._full.get_vocab().values()) + 1
        self.hash = stable_hash([document["model"], document.get("pre_tokenizer"), document.get("normalizer"), added])

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text; a special token written in it becomes its letters."""
        ids = self._text.encode(text, add_special_tokens=False).ids
        if self._special_ids.isdisjoint(ids):
            return ids
        # A vocabulary that holds special tokens as whole words: cut each spelling apart.
        for token in self._specials:
            if token in text:
                left, right = text.split(token, 1)
                return self.encode(left + token[0]) + self.encode(token[1:] + right)
        return [i for i in ids if i not in self._special_ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens left out. Bytes that are no UTF-8 read as U+FFFD."""
        return self._text.decode([i for i in ids if i not in self._special_ids], skip_special_tokens=False)

    def special(self, token: str) -> int:
        """Raises: KeyError naming the token and those there are."""
        if token not in self._specials:
            raise KeyError(f"no special token {token!r}; there are: {', '.join(sorted(self._specials)) or 'none'}")
        return self._specials[token]

    def decode_all(self, ids: Sequence[int]) -> str:
        """Text of `ids`, special tokens spelled."""
        return self._full.decode(list(ids), skip_special_tokens=False)

    def named_tokens(self) -> dict[str, str]:
        """`bos_token`, `eos_token` ... as chat templates use them."""
        said = json.loads(self._beside.get(CONFIG_FILE) or "{}")
        named = {k: v["content"] if isinstance(v, dict) else v for k, v in said.items() if k.endswith("_token")}
        return {k: v for k, v in named.items() if isinstance(v, str)}

    def save(self, folder: str | Path) -> None:
        """Write `tokenizer.json` and what Transformers wants beside it; a chat template that was there stays. Each file
        appears whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        texts = {FILE: _as_json(self._document), CONFIG_FILE: _as_json(config)} | self._beside
        for name, text in texts.items():
            new = folder / f".{name}.new"
            new.write_text(text, encoding="utf-8")
            os.replace(new, folder / name)


def check_tokenizer(tokenizer: HFTokenizer, folder: Path) -> HFTokenizer:
    """Refuse a tokenizer that belongs to another model than `folder` holds: one with more tokens than the model has
    places for. (Fewer are usual: vocabularies are padded.) Raises: UserError."""
    try:
        places = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("vocab_size")
    except (OSError, ValueError, AttributeError):
        return tokenizer  # what is wrong with the model is told where it is loaded
    if isinstance(places, int) and tokenizer.vocab_size > places:
        raise UserError(
            f"{folder}: the tokenizer does not match the model: it has {tokenizer.vocab_size} tokens, the model {places} "
            "(config.json, vocab_size). Put the tokenizer.json there that the model was trained with"
        )
    return tokenizer


def _as_json(content: Any) -> str:
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


class BPETokenizer(HFTokenizer):
    """Byte-level BPE, made by `train` or read by `load`: any text can be written, frequent words are one token."""

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 512, special_tokens: Sequence[str] = SPECIAL_TOKENS) -> BPETokenizer:
        """Merges learned from `texts`; the same texts in any order give the same tokenizer. Special tokens come first.

        256 ids are bytes, so a small vocabulary still writes anything. Raises: UserError where they do not fit.
        """
        if vocab_size < 256 + len(special_tokens):
            raise UserError(f"a vocabulary of {vocab_size} cannot hold 256 bytes and {len(special_tokens)} special tokens")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])  # fmt: skip
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(special_tokens),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            min_frequency=2,
            show_progress=False,
        )
        tokenizer.train_from_iterator(sorted(texts), trainer)
        made = cls.__new__(cls)
        made._adopt(json.loads(tokenizer.to_str()), "BPETokenizer.train")
        return made

    @classmethod
    def load(cls, folder: str | Path) -> BPETokenizer:
        """Raises: UserError where there is no tokenizer or it is damaged."""
        return cls(folder)
