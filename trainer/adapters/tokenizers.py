"""Our renderers over the tokenizers of others."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from envfarm.errors import UserError
from rollout.build import make_renderer
from rollout.renderers.base import Renderer
from rollout.tokenizers import FILE, HFTokenizer


def renderer_of(tokenizer: Any, name: str = "chatml") -> Renderer:
    """Over a Hugging Face tokenizer. Raises: UserError for a slow one, which has no `tokenizer.json`."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UserError(f"{type(tokenizer).__name__} is a slow tokenizer; a fast one (tokenizer.json) is needed for exact ids")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / FILE).write_text(backend.to_str(), encoding="utf-8")
        return make_renderer(name, HFTokenizer(folder))
