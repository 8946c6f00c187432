"""Checkpoints in transformers' layout: written shard by shard, with places for biases that an architecture can hold.

Loading a checkpoint drops what the class has no place for, with no more than a warning. So the class is built once more from
the configuration that will be written, without memory (on the meta device), and must want exactly the tensors that are written.
"""

from __future__ import annotations

import copy
import itertools
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import ArtefactError, UnsupportedError
from ..files import write_text
from .hf_model import no_bars
from .hf_offload import State

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NOTES = "steerlab.json"  # what was changed; and the mark of a folder that may be replaced
FLAGS = (
    "mlp_bias",
    "attention_bias",
    "use_bias",
    "attention_out_bias",
    "bias",
)  # of configurations that give matrices a bias


def places(model: PreTrainedModel, biases: Sequence[str], *, untied: bool) -> tuple[Any, set[str]] | str:
    """A configuration under which these parameters exist (and, `untied`, a head of its own), and all names that it has.

    Or the reason why there is none: an architecture has a place for a bias, or a flag for one, or it has not.
    """
    base = copy.deepcopy(model.config)
    if untied:
        base.tie_word_embeddings = False
    now, wanted = _names(type(model), base), set(biases)
    if isinstance(now, str):
        return now
    text = base.get_text_config()
    flags = [f for f in FLAGS if getattr(text, f, None) is False]
    for count in range(len(flags) + 1):
        for chosen in itertools.combinations(flags, count):
            config = copy.deepcopy(base)
            for flag in chosen:
                setattr(config.get_text_config(), flag, True)
            names = _names(type(model), config)
            if isinstance(names, set) and wanted <= names and all(n.endswith(".bias") for n in names - now):
                return config, names
    lacking = sorted(wanted - now)
    more = f" and {len(lacking) - 1} more" if lacking[1:] else ""
    return (
        f"{type(model).__name__} has no place for the bias {lacking[0]}{more} in a checkpoint (loading would drop it without a"
        " word); an adapter (lora) can carry it"
    )


def save(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    config: Any,
    names: set[str],
    changed: Mapping[str, Callable[[], Tensor]],
    *,
    shard_bytes: int,
    notes: Mapping[str, Any],
) -> list[Path]:
    """Write a checkpoint with some tensors changed; each is computed when its shard is written, beside and renamed as a whole.

    `changed` gives tensors by name; names that are new and not given are zeros. Raises `ArtefactError` where the folder can't
    be written, `UnsupportedError` where the class wants other tensors than there are.
    """
    _refuse_replacing(folder)
    held = State(model)
    tied = _tied(held, config)
    kept = {n: tuple(t.shape) for n, t in held.shapes.items() if n not in tied}
    new = {n: _like(n, model, config) for n in names - set(kept) if n.endswith(".bias") or n in changed}
    every = {**kept, **new}
    if odd := sorted(set(every) ^ (names - tied)):
        raise UnsupportedError(
            f"a checkpoint of {type(model).__name__} would hold other tensors than it wants: {odd[:4]}."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    except OSError as problem:
        raise ArtefactError(f"{folder} can't be written: {problem.strerror or problem}.") from problem
    try:
        with no_bars():
            config.architectures = [type(model).__name__]
            config.save_pretrained(part)
            tokenizer.save_pretrained(part)
            if (generation := getattr(model, "generation_config", None)) is not None:
                generation.save_pretrained(part)
        _shards(part, every, model.dtype, held, changed, shard_bytes)
        write_text(part / NOTES, json.dumps(notes, indent=1) + "\n")
        part.chmod(0o755)
        for file in part.iterdir():
            file.chmod(0o644)
        if folder.exists():
            shutil.rmtree(folder)
        part.replace(folder)
    except OSError as problem:
        raise ArtefactError(
            f"{folder} can't be written: {problem.strerror or problem}. Nothing was changed."
        ) from problem
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return sorted(folder.iterdir())


def _refuse_replacing(folder: Path) -> None:
    """Only a folder that an export wrote, or an empty one, is ever replaced. Raises `ArtefactError`."""
    if folder.exists() and not folder.is_dir():
        raise ArtefactError(f"{folder} is a file; a checkpoint is a folder.")
    if folder.exists() and any(folder.iterdir()) and not (folder / NOTES).exists():
        raise ArtefactError(
            f"{folder} holds files that no export wrote, and a checkpoint takes the whole folder; name a new one."
        )


def _shards(
    folder: Path,
    shapes: Mapping[str, tuple[int, ...]],
    dtype: torch.dtype,
    held: State,
    changed: Mapping[str, Callable[[], Tensor]],
    most: int,
) -> None:
    """The tensors in files of at most so many bytes, one in memory at a time, and the index that says which is where."""
    from safetensors.torch import save_file

    kinds = {n: held.shapes[n].dtype if n in held else dtype for n in shapes}
    groups = list(_grouped({n: _bytes(shape, kinds[n]) for n, shape in shapes.items()}, most))
    index: dict[str, str] = {}
    for k, names in enumerate(groups):
        file = "model.safetensors" if len(groups) == 1 else f"model-{k + 1:05}-of-{len(groups):05}.safetensors"
        tensors: dict[str, Tensor] = {}
        for n in names:
            value = changed[n]() if n in changed else held[n] if n in held else torch.zeros(shapes[n])
            if tuple(value.shape) != tuple(shapes[n]):
                raise UnsupportedError(f"{n} would have the shape {list(value.shape)}; expected {list(shapes[n])}.")
            tensors[n] = value.detach().to(device="cpu", dtype=kinds[n]).contiguous().clone()
            index[n] = file
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(groups) > 1:
        total = sum(_bytes(shape, kinds[n]) for n, shape in shapes.items())
        told = {"metadata": {"total_size": total}, "weight_map": index}
        write_text(folder / "model.safetensors.index.json", json.dumps(told, indent=1))


def _grouped(sizes: Mapping[str, int], most: int) -> Iterator[list[str]]:
    group: list[str] = []
    used = 0
    for name, size in sizes.items():
        if group and used + size > most:
            yield group
            group, used = [], 0
        group.append(name)
        used += size
    yield group


def _tied(state: State, config: Any) -> set[str]:
    """The names that loading ties to another one (none where they are to be apart)."""
    return state.again if getattr(config, "tie_word_embeddings", False) else set()


def _names(kind: type, config: Any) -> set[str] | str:
    """The tensors that a checkpoint of this configuration has."""
    try:
        with torch.device("meta"):
            return set(kind(config).state_dict())
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as problem:
        return f"{kind.__name__} can't be built without memory to see what its checkpoints hold ({problem})"


def _like(name: str, model: PreTrainedModel, config: Any) -> tuple[int, ...]:
    """The shape of a tensor that only the new configuration has."""
    with torch.device("meta"):
        return tuple(type(model)(config).state_dict()[name].shape)


def _bytes(shape: Sequence[int], dtype: torch.dtype) -> int:
    return int(torch.Size(shape).numel()) * dtype.itemsize
