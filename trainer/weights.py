"""What is trained, and what computes: the optimizer's float32 masters, and the leaves that the forward uses.

    everything, float32     one and the same tensors
    everything, bf16        the decoder is a bf16 copy, made anew after every step
    LoRA                    the decoder's own weights are frozen (float32 or bf16); beside some of its projections are
                            two small factors, rounded to bf16 as they are saved, with float32 masters

So an adapter computes, acts and lies on disk with the same numbers: what is published is the base with the rounded
factors in it (`rollout.engines.torch.adapter.merge`), to the bit what `envfarm eval` makes of the saved folder.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from envfarm.errors import UserError
from rollout.engines.torch.adapter import Lora, factor_names, merge, read_adapter, targets_in, write_adapter
from rollout.engines.torch.checkpoint import checksum, fit, load_state, save_model
from rollout.engines.torch.model import Decoder

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Trained:
    """A decoder with all its weights trained, in the type that they have."""

    def __init__(self, model: Decoder):
        self.model = model
        self.names = [n for n, _ in model.named_parameters()]
        self.leaves: list[Tensor] = [p for _, p in model.named_parameters()]
        self.masters = self.leaves

    def changed(self) -> None:
        """The masters were moved: compute with them from now on."""

    def state(self) -> dict[str, Tensor]:
        """The whole model's weights as they act, names as in its folder. Never written to afterwards."""
        return {n: p.detach().clone() for n, p in zip(self.names, self.masters, strict=True)}

    def trained(self) -> dict[str, Tensor]:
        """The masters by name, copied: what a checkpoint holds."""
        return {n: p.detach().clone() for n, p in zip(self.names, self.masters, strict=True)}

    def foundation(self) -> str:
        """The checksum of what is not trained and not in a checkpoint; empty where there is nothing."""
        return ""

    @torch.no_grad()
    def restore(self, trained: dict[str, Tensor]) -> None:
        """The opposite of `trained`. Raises: ValueError where names or shapes do not fit."""
        wrong = [n for n, p in zip(self.names, self.masters, strict=True) if n not in trained or trained[n].shape != p.shape]
        if wrong or len(trained) != len(self.names):
            raise ValueError(f"weights do not fit what is trained: {', '.join(wrong[:3]) or 'there are more of them'}")
        for name, master in zip(self.names, self.masters, strict=True):
            master.copy_(trained[name])
        self.changed()

    def load(self, folder: Path) -> None:
        """The weights of a saved policy. Raises: UserError, ValueError where they do not fit."""
        self.restore(fit(load_state(folder), self.model.config))

    def save(self, folder: Path) -> None:
        """A model folder: config.json and model.safetensors, whatever of it is trained."""
        save_model(folder, self.model.config, self.state())

    def save_policy(self, folder: Path) -> bool:
        """The smallest folder that acts. True where that is a model folder, which wants its tokenizer beside it."""
        self.save(folder)
        return True


class Rounded(Trained):
    """All weights trained; forward and backward in another type than the masters' float32."""

    def __init__(self, model: Decoder, dtype: torch.dtype):
        super().__init__(model)
        self.masters = [p.detach().float().clone() for p in self.leaves]
        model.to(dtype)
        self.leaves = [p for _, p in model.named_parameters()]

    @torch.no_grad()
    def changed(self) -> None:
        torch._foreach_copy_(self.leaves, self.masters)


class LoraLinear(nn.Module):
    """A frozen projection and two factors beside it: x W' + scale (x A') B'."""

    def __init__(self, weight: Tensor, rank: int, scale: float):
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.A = nn.Parameter(weight.new_empty(rank, weight.shape[1]))
        self.B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out]; scaled where it is narrow."""
        return torch.addmm(F.linear(x, self.weight), F.linear(x, self.A) * self.scale, self.B.t())


class Adapted(Trained):
    """A frozen decoder with LoRA factors. `base` is what its folder is called where the adapter is loaded again."""

    def __init__(self, model: Decoder, lora: Lora, *, base: str, dtype: torch.dtype = torch.float32, seed: int = 0):
        self.model, self.lora, self.base_name = model, lora, base
        self.base = {n: p.detach() for n, p in model.state_dict().items()}
        self._foundation = ""
        model.requires_grad_(False)
        if dtype != torch.float32:  # `base` keeps the float32 tensors; the decoder gets tensors of its own
            for parameter in model.parameters():
                parameter.data = parameter.data.to(dtype)
        targets = targets_in(self.base, lora)
        layers = {name: _replace(model, name, lora) for name in targets}
        self.names = [factor for name in targets for factor in factor_names(name)]
        self.leaves = [leaf for name in targets for leaf in (layers[name].A, layers[name].B)]
        self.masters = [leaf.detach().float().clone() for leaf in self.leaves]
        self._initialise(torch.Generator().manual_seed(seed))
        self.changed()

    def _initialise(self, generator: torch.Generator) -> None:
        """A as peft does it, uniform within 1/sqrt(in); B zero, so that the adapter begins by changing nothing."""
        for master in self.masters[::2]:
            bound = master.shape[1] ** -0.5
            master.uniform_(-bound, bound, generator=generator)

    @torch.no_grad()
    def changed(self) -> None:
        for leaf, master in zip(self.leaves, self.masters, strict=True):
            leaf.copy_(master.to(torch.bfloat16))

    def factors(self) -> dict[str, Tensor]:
        """The adapter as it acts and is saved: bf16, named as peft names it."""
        return {n: m.detach().to(torch.bfloat16) for n, m in zip(self.names, self.masters, strict=True)}

    def state(self) -> dict[str, Tensor]:
        return merge(self.base, self.lora, self.factors())

    def foundation(self) -> str:
        if not self._foundation:
            self._foundation = checksum(self.base)
        return self._foundation

    def load(self, folder: Path) -> None:
        """An adapter of the same shape. Raises: UserError, ValueError where it is of another base or shape."""
        found = read_adapter(folder)
        if (found.lora, found.base) != (self.lora, self.base_name):
            raise UserError(
                f"{folder}: an adapter of {found.base} with {found.lora}; this run trains {self.base_name} with {self.lora}"
            )
        self.restore(found.tensors)

    def save_policy(self, folder: Path) -> bool:
        write_adapter(folder, self.lora, self.factors(), self.base_name)
        return False


def _replace(model: Decoder, name: str, lora: Lora) -> LoraLinear:
    """Put an adapted projection where the plain one of that name is."""
    path, _, attribute = name.removesuffix(".weight").rpartition(".")
    parent = model.get_submodule(path)
    plain = getattr(parent, attribute)
    adapted = LoraLinear(plain.weight.detach(), lora.rank, lora.scale)
    setattr(parent, attribute, adapted)
    return adapted


def trained(model: Decoder, *, dtype: str = "float32", lora: Lora | None = None, base: str = "", seed: int = 0) -> Trained:
    """What the run file asks for. `dtype` is one of DTYPES."""
    kind = DTYPES[dtype]
    if lora is not None:
        return Adapted(model, lora, base=base, dtype=kind, seed=seed)
    return Trained(model) if kind == torch.float32 else Rounded(model, kind)
