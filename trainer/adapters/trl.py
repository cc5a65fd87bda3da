"""TRL's trainers on our episodes: exact data sets, live rollouts, and environments as tools. One import for all of it.

    from trainer.adapters.trl import exact, load_exact                            # SFT, DPO, KTO on `envfarm export --to trl-*`
    from trainer.adapters.trl import environment_reward, make_rollout_func        # GRPOTrainer, token-exact, many turns
    from trainer.adapters.trl import environment_factory                          # GRPOTrainer plays tools itself

Nothing of TRL is imported here: the trainers come in as arguments.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from envfarm.errors import UserError
from rollout.export.base import package
from rollout.export.trl import TOKENS, read
from trainer.adapters.trl_environment import EnvironmentFactory, environment_factory
from trainer.adapters.trl_rollout import RolloutFunc, environment_reward, make_rollout_func

__all__ = [
    "EnvironmentFactory", "RolloutFunc", "check_tokenizer", "environment_factory", "environment_reward", "exact", "load_exact",
    "make_rollout_func",
]  # fmt: skip

_COLUMNS = (("labels", "replies"), ("completion_ids", "reply"), ("chosen_ids", "chosen_reply"))
"""Column of ids -> column of the text that they are."""


def load_exact(folder: str | Path, tokenizer: Any) -> Any:
    """The token-exact data set of an export as a `datasets.Dataset`, for a model with this tokenizer.

    Raises: UserError where there is none, or where its ids are another tokenizer's; MissingDependencyError.
    """
    path = Path(folder) / TOKENS
    if not path.is_file():
        raise UserError(
            f"no {path}: the export of a store that a model was rolled out into has one; logs of scripted policies have no "
            'tokens, train on the *.jsonl beside it (`load_dataset("json", ...)`)'
        )
    check_tokenizer(folder, tokenizer)
    return package("datasets", extra="trl").Dataset.from_parquet(str(path))


def check_tokenizer(folder: str | Path, tokenizer: Any, *, records: int = 64) -> None:
    """Whether the first records' ids spell, with this tokenizer, what was said. Raises: UserError where they do not."""
    for number, record in zip(range(records), read(Path(folder)), strict=False):
        ids_of, text_of = next(names for names in _COLUMNS if names[0] in record)
        ids = [i for i in record[ids_of] if i >= 0]
        said = record[text_of] if isinstance(record[text_of], list) else [record[text_of]]
        spelled = tokenizer.decode(ids, skip_special_tokens=True) if max(ids) < len(tokenizer) else None
        missing = [text for text in said if spelled is None or text.strip() not in spelled]
        if missing:
            other = f"it has {len(tokenizer)} ids, and {max(ids)} occurs" if spelled is None else f"they read {spelled[:60]!r}"
            raise UserError(
                f"{Path(folder) / TOKENS}, record {number}: these token ids are another tokenizer's: {missing[0][:60]!r} was "
                f"said, and with the one given {other}. Train the model that was rolled out, or on the *.jsonl of the export"
            )


T = TypeVar("T", bound=type)


def exact(trainer: T) -> T:
    """TRL's `DPOTrainer` or `KTOTrainer` for data that is tokens already (`load_exact`): it would tokenize text again.

        exact(DPOTrainer)(model="model", args=DPOConfig(...), train_dataset=load_exact("out", tokenizer))

    `SFTTrainer` takes such data as it is.
    """

    class Exact(trainer):  # type: ignore[valid-type,misc]
        def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
            if "prompt_ids" not in dataset.column_names:
                return super()._prepare_dataset(dataset, processing_class, args, dataset_name)
            if getattr(self, "calculate_KL", False):  # KTO's estimate pairs each prompt with another's completion
                size = args.per_device_train_batch_size
                dataset = dataset.map(_rotate_completions, batched=True, batch_size=size)
            return dataset

    Exact.__name__ = Exact.__qualname__ = f"Exact{trainer.__name__}"
    return Exact  # type: ignore[return-value]


def _rotate_completions(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    ids = batch["completion_ids"]
    return {"KL_completion_ids": [ids[-1], *ids[:-1]]}
