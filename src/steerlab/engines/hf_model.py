"""What a Hugging Face model says of itself: its configuration, the tokens that end a reply, what tells it from others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..errors import ArtefactError, ConfigError, SteerlabError, nearest
from .hf_offload import elsewhere, tensors
from .hf_quantize import inside, is_wrapped, settings, taken_apart
from .hf_sites import Anatomy

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPREAD = ("auto", "balanced", "balanced_low_0", "sequential")  # device maps that accelerate works out
BY_NUMBER = (
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


@contextmanager
def no_bars() -> Generator[None]:
    """Without transformers' own bars for loading weights, which for small models are mere noise."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    try:
        logging.disable_progress_bar()
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def text_config(model: PreTrainedModel) -> Any:
    """The configuration of its language model, where it has others, too."""
    config: Any = model.config
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a reply: those of the generation config, and the tokenizer's own."""
    ends: list[int] = []
    for given in (getattr(model.generation_config, "eos_token_id", None), tokenizer.eos_token_id):
        if isinstance(given, int):
            ends.append(given)
        elif isinstance(given, (list, tuple)):
            ends.extend(cast("list[int]", list(given)))
    vocabulary = text_config(model).vocab_size
    return [e for e in dict.fromkeys(ends) if e < vocabulary]


def pad_id(pad: object, ends: Sequence[int], vocabulary: int) -> int:
    """What padding is written with: the tokenizer's own, or, where the embedding has no such row, another one (it is masked)."""
    if isinstance(pad, int) and 0 <= pad < vocabulary:
        return pad
    return next((end for end in ends if end < vocabulary), 0)


def sketch(model: PreTrainedModel, anatomy: Anatomy) -> dict[str, list[float]]:
    """Values sampled from weights that keep their meaning in any dtype: the embedding and the middle block's largest.

    Quantised weights are stored packed and are left out; the others still tell the model.
    """
    inner = anatomy.blocks[anatomy.depth // 2].parameters()
    middle = [p for p in inner if p.ndim == 2 and p.is_floating_point() and not is_wrapped(p)]
    named = {"embed": model.get_input_embeddings().weight, "block": max(middle, key=Tensor.numel, default=None)}
    names, away = {id(p): name for name, p in model.named_parameters()}, elsewhere(model)
    sketch: dict[str, list[float]] = {}
    for name, weight in named.items():
        if isinstance(weight, Tensor) and weight.device.type == "meta" and (lies := names.get(id(weight))) in away:
            weight = away[lies]()
        if isinstance(weight, Tensor) and weight.ndim == 2 and weight.is_floating_point() and _here(weight):
            sketch[name] = sampled(weight)
    return sketch


def _here(weight: Tensor) -> bool:
    """Whether its numbers can be read: they are in memory, and not in a form of another kind inside."""
    return weight.device.type != "meta" and not is_wrapped(weight)


def sampled(weight: Tensor) -> list[float]:
    """The values of a matrix that a sketch has."""
    rows, columns = weight.shape
    at = torch.arange(32, device=weight.device)
    return [round(v, 6) for v in weight.detach()[at * 7 % rows, at * 13 % columns].float().tolist()]


def identity(model: PreTrainedModel, template: str) -> str:
    """A digest of all weights, by three sums of each piece, with their dtype and the template."""
    h = hashlib.sha256(f"{template} {model.dtype}".encode())
    each = ((n, t) for name, whole in tensors(model) for n, t in _plain(name, whole))
    for name, t in each:
        h.update(f"{name} {tuple(t.shape)}".encode())
        for piece in t.detach().flatten().split(2**22):
            x = piece.double()
            sums = (x.sum(), x.square().sum(), x @ torch.arange(len(x), dtype=x.dtype, device=x.device))
            h.update(str([v.item() for v in sums]).encode())
    return h.hexdigest()[:32]


def _plain(name: str, t: Tensor) -> list[tuple[str, Tensor]]:
    """A tensor under its name, or those that a wrapped one holds."""
    return [(f"{name}.{key}", held) for key, held in inside(t).items()] if is_wrapped(t) else [(name, t)]


def shape(model: PreTrainedModel) -> str:
    """A digest of the sizes that its configuration gives."""
    return shape_of(text_config(model))


def sizes_of(config: Any) -> dict[str, str | int]:
    """The sizes themselves, by name, so that a person can be told which differ."""
    sizes = {key: getattr(config, key, None) for key in BY_NUMBER}
    return {key: value for key, value in sizes.items() if isinstance(value, (str, int))}


def shape_of(config: Any) -> str:
    """A digest of the sizes that a language model's configuration gives."""
    told = {key: getattr(config, key, None) for key in BY_NUMBER}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def loaded(
    name: str, *, revision: str | None, dtype: str, device: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer by name or folder. Raises `ArtefactError` where they can't be loaded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = None if device is None or device in SPREAD else _device(device)
    dtype, kind = taken_apart(dtype)
    spread: Any = device if device in SPREAD else None
    try:
        with no_bars():
            tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
            quantised: dict[str, Any] = {}
            if kind is not None:
                spread = spread or {"": whole or torch.device("cpu")}
                quantised["quantization_config"] = settings(name, revision, dtype, kind)
            model = AutoModelForCausalLM.from_pretrained(
                name, revision=revision, dtype=dtype, device_map=spread, **quantised
            )
    except SteerlabError:
        raise
    except (OSError, ValueError, ImportError) as problem:
        first = str(problem).strip().splitlines()[0]
        raise ArtefactError(
            f"the model {name!r} can't be loaded: {first} Give a folder that `save_pretrained` wrote, a name on the hub"
            " (needs a network, or its cache), or 'pilot' for the built-in model."
        ) from problem
    if whole is not None and kind is None:
        cast("nn.Module", model).to(whole)
    return model, tokenizer


def _device(name: str) -> torch.device:
    try:
        return torch.device(name)
    except RuntimeError as problem:
        raise ConfigError(f"there is no device {name!r}. {nearest(name, ('cpu', 'cuda', 'mps', *SPREAD))}") from problem
