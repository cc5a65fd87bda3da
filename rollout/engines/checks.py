"""What engines refuse in the same words: prompts that do not fit, ids outside the vocabulary, policies that they lack."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from envfarm.errors import UnknownIdError, did_you_mean
from rollout.types import SamplingParams

T = TypeVar("T")


def check_prompt(prompt_ids: list[int], params: SamplingParams, *, context: int, vocab: int) -> None:
    """Raises: ValueError where not even one token of a reply fits behind the prompt, or ids are none of the model's."""
    if not 0 < len(prompt_ids) < context:
        raise ValueError(f"a prompt of {len(prompt_ids)} tokens does not fit a context of {context}")
    if params.max_tokens < 1:
        raise ValueError(f"sampling.max_tokens is {params.max_tokens}; at least 1 was expected")
    _check_ids([*prompt_ids, *params.stop_ids], vocab)


def check_scored(token_ids: list[int], *, most: int, vocab: int) -> None:
    """Of teacher-forced tokens, `most` at a time. Raises: ValueError."""
    if not 1 < len(token_ids) <= most:
        raise ValueError(f"{len(token_ids)} tokens cannot be scored: 2 to {most} were expected")
    _check_ids(token_ids, vocab)


def served(policy: str, policies: Mapping[str, T]) -> T:
    """Raises: UnknownIdError with near matches."""
    if policy not in policies:
        known = ", ".join(policies)
        raise UnknownIdError(f"no policy {policy!r} in the engine{did_you_mean(policy, policies)}; it has: {known}")
    return policies[policy]


def check_new(policy: str, policies: Mapping[str, object]) -> None:
    """Of a policy that is added. Raises: ValueError where its name is taken."""
    if policy in policies:
        raise ValueError(f"the engine has a policy {policy!r} already; use update_weights")


def _check_ids(ids: list[int], vocab: int) -> None:
    if min(ids) < 0 or max(ids) >= vocab:
        wrong = next(i for i in ids if not 0 <= i < vocab)
        raise ValueError(f"token id {wrong} is outside the model's vocabulary of {vocab}")
