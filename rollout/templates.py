"""Which renderer writes as a model's own chat template does: tried, not guessed from a name.

The template (`chat_template.jinja`, or a key of `tokenizer_config.json`) and each renderer write the same short
conversation; the first renderer whose text is the template's, letter for letter, is the model's. A model without a
template is given ChatML.
"""

from __future__ import annotations

import json
from pathlib import Path

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from envfarm.errors import UserError
from rollout.renderers.base import RENDERERS
from rollout.tokenizers import HFTokenizer
from rollout.types import Message

TEMPLATE = "chat_template.jinja"

PROBE = (
    Message(role="system", content="You play."),
    Message(role="user", content="A wall, 2 doors."),
    Message(role="assistant", content="go north"),
    Message(role="user", content="A hall."),
    Message(role="assistant", content="stop"),
    Message(role="user", content="Again?"),
)


def chat_template(folder: Path) -> str | None:
    """A model folder's template. Raises: UserError where it is damaged."""
    path = folder / TEMPLATE
    if path.is_file():
        return path.read_text(encoding="utf-8")
    config = folder / "tokenizer_config.json"
    if not config.is_file():
        return None
    try:
        found = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{config}: damaged ({error}); write or download the model again") from None
    if isinstance(found, list):  # several by name
        found = next((t.get("template") for t in found if t.get("name") == "default"), None)
    return found if isinstance(found, str) else None


def native_renderer(folder: Path, tokenizer: HFTokenizer) -> str:
    """The renderer's name. Raises: UserError where none writes as the template does (what to do)."""
    template = chat_template(folder)
    if template is None:
        return "chatml"
    wanted = written_by_template(template, tokenizer)
    for name in ("chatml", "thinking", "compact"):
        if wanted is not None and written_by(name, tokenizer) == wanted:
            return name
    raise UserError(
        f"{folder}: none of the renderers ({', '.join(RENDERERS)}) writes as this model's chat template does. Give the one that "
        "comes nearest (`renderer:` of the policy in a run file, `--renderer` of a command; the model then sees another "
        "format than it was trained on), or write one for the template and name it `module:Class`"
    )


def written_by_template(template: str, tokenizer: HFTokenizer) -> str | None:
    """The probe, as the template writes it; None where it cannot."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])

    def refuse(message: str) -> None:
        raise jinja2.TemplateError(message)

    messages = [{"role": m.role, "content": m.content} for m in PROBE]
    try:
        made = environment.from_string(template, globals={"raise_exception": refuse})
        return made.render(messages=messages, add_generation_prompt=True, **tokenizer.named_tokens())
    except (jinja2.TemplateError, TypeError, ValueError):
        return None


def written_by(name: str, tokenizer: HFTokenizer) -> str | None:
    """The probe, as a renderer writes it; None where the tokenizer lacks its tokens."""
    from rollout.build import make_renderer

    try:
        renderer = make_renderer(name, tokenizer)
    except UserError:
        return None
    ids = [i for index, message in enumerate(PROBE) for i in renderer.render_message(message, index)]
    return tokenizer.decode_all([*ids, *renderer.generation_prompt()])
