"""A block's weight matrices: which of them a weight edit can act on, and why the others can't.

A weight edit is run beside the matrix, x·Wᵀ + x·(s·ΔW)ᵀ, in a hook on the module that applies it: row by row, so that one
batch holds any mix of steerings and its key-value cache, and without ever writing a weight, so that there is nothing to
restore. That is exact where the module is a plain linear map that runs once in a pass, on `[b, t, in]`, with a weight of
its own; what doesn't show this in the watched pass is no such site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from ..errors import UnsupportedError
from .hf_offload import own

PLAIN = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


_LOOSE = "it isn't the weight of a module of its own (a mixture of experts keeps all its matrices in one tensor)"


class Matrix(NamedTuple):
    """A weight matrix `[height, width]` (out, in): the module that applies it, and the part it reads (`heads`, `neurons`)."""

    module: nn.Module
    height: int
    width: int
    reads: str | None


class Called(Protocol):
    """One call of a module in the watched pass."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def read(self) -> Tensor | None: ...
    @property
    def gave(self) -> Tensor | None: ...


@dataclass
class Matrices:
    """Those of one block by name, in the order in which they are used, and why others can't be edited."""

    found: dict[str, Matrix] = field(default_factory=dict[str, Matrix])
    refused: dict[str, str] = field(default_factory=dict[str, str])


def find_matrices(
    block: nn.Module, calls: Sequence[Called], parts: Mapping[nn.Module, str], owners: Mapping[nn.Module, list[str]]
) -> Matrices:
    """The matrices of a block. `parts` says which modules read a part; `calls` are those of one pass of two tokens."""
    made = Matrices()
    names = {module: name for name, module in block.named_modules() if name}
    in_order = dict.fromkeys([call.module for call in calls if call.module in names])
    for module in [*in_order, *(m for m in names if m not in in_order)]:
        weight = _own(module, "weight")
        mine = [call for call in calls if call.module is module]
        for name, p in module.named_parameters(recurse=False):
            if p.ndim > 1 and name != "weight":
                made.refused[f"{names[module]}.{name}"] = _LOOSE
        if weight is None and not _packed(module):
            continue
        problem = _problem(module, weight, mine, owners)
        if problem:
            made.refused[names[module]] = problem
        elif problem is None:
            read, gave = mine[0].read, mine[0].gave
            assert read is not None and gave is not None  # seen by _problem
            made.found[names[module]] = Matrix(module, gave.shape[-1], read.shape[-1], parts.get(module))
    return made


def _problem(
    module: nn.Module, weight: nn.Parameter | None, calls: Sequence[Called], owners: Mapping[nn.Module, list[str]]
) -> str | None:
    """Why a weight can't be edited; None where it can, and empty where it is no matrix at all."""
    if _packed(module) or weight is None or type(weight) is not nn.Parameter or weight.dtype not in PLAIN:
        return (
            f"its weight is quantised or held by a wrapper ({type(module).__name__}), so that what W + s·ΔW would be there isn't"
            " what is stored; load the model in bfloat16 or float32"
        )
    if weight.ndim == 1:
        return ""
    if weight.ndim != 2:
        return f"its weight has {weight.ndim} axes; expected a matrix"
    shared = owners[module]
    if len(shared) > 1:
        return f"its weight is tied: {' and '.join(shared)} are one tensor, and an edit of one would change the other"
    if len(calls) != 1:
        return f"its module runs {len(calls)} times in a pass; expected once"
    read, gave = calls[0].read, calls[0].gave
    if read is None or gave is None or read.ndim != 3 or gave.ndim != 3 or read.shape[:2] != gave.shape[:2]:
        return "its module doesn't read and give [rows, tokens, width], so whose row a token is can't be told"
    if not _is_linear(module, weight, read.shape[-1], gave.shape[-1]):
        return f"its module ({type(module).__name__}) gives something else than x·Wᵀ + b"
    return None


def _is_linear(module: nn.Module, weight: Tensor, width: int, height: int) -> bool:
    """Whether the module gives x·Wᵀ + b, tried on some x (Conv1D of GPT-2 keeps W as [in, out])."""
    if type(module) is nn.Linear:
        return tuple(weight.shape) == (height, width)
    if tuple(weight.shape) not in ((height, width), (width, height)):
        return False
    try:
        weight, bias = cast("Tensor", own(module, "weight")), own(module, "bias")
    except UnsupportedError:
        return False
    x = torch.linspace(-1, 1, 2 * width, device=weight.device).sin_().reshape(1, 2, width).to(weight.dtype)
    with torch.no_grad():
        try:
            gave = module(x).to(weight.device).float()
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False  # it needs more than x
        wanted = [
            torch.nn.functional.linear(x, w, bias).float()
            for w in (weight, weight.T)
            if tuple(w.shape) == (height, width)
        ]
    near = 1e-5 if weight.dtype in (torch.float32, torch.float64) else 2e-2
    return any(float((gave - w).abs().max()) <= near * float(w.abs().max()) for w in wanted)


def _packed(module: nn.Module) -> bool:
    """Whether it keeps a matrix in some packed form: integer buffers, or parameters that only its own kernel reads."""
    buffers = [b for b in module.buffers(recurse=False) if b.ndim == 2 and b.dtype != torch.bool]
    return any(not b.is_floating_point() for b in buffers) or hasattr(module, "_packed_params")


def _own(module: nn.Module, name: str) -> nn.Parameter | None:
    """A parameter of the module itself (an attribute of that name may be a method, in quantised modules)."""
    return dict(module.named_parameters(recurse=False, remove_duplicate=False)).get(name)
