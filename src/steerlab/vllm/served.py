"""What is known of the served model without its weights in memory: from its configuration, its files and its tokenizer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..engines.hf_model import sampled, shape_of, sizes_of
from ..engines.render import Renderer
from ..errors import DataError
from .admission import Known


def known(name: str, revision: str | None, tokenizer: Any) -> Known:
    """What tells the model from others, as the Hugging Face engine would tell it."""
    return Known(name, fingerprint(name, revision), renderer(tokenizer).digest)


def renderer(tokenizer: Any) -> Renderer:
    """Writes conversations as the model's own template does; plain text where there is none."""
    return Renderer(tokenizer, "chat" if getattr(tokenizer, "chat_template", None) else "plain", ())


def head_of(tokenizer: Any) -> Callable[[Sequence[int]], int]:
    """Finds the template's head in a prompt's ids."""
    return renderer(tokenizer).head_of


def fingerprint(name: str, revision: str | None = None) -> dict[str, Any] | None:
    """Its shape, and values sampled from its files of weights; None where there are none to be read on this machine."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(name, revision=revision)
    folder = _folder(name, revision)
    if folder is None:
        return None
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    sketch = {key: sampled(w) for key, path in _names(config, text).items() if (w := _tensor(folder, path)) is not None}
    return {"shape": shape_of(text), "sizes": sizes_of(text), "sketch": sketch} if sketch else None


def _folder(name: str, revision: str | None) -> Path | None:
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=["*.safetensors*"])
        )
    except (LocalEntryNotFoundError, HfHubHTTPError, ValueError, OSError):
        return None


def _names(config: Any, text: Any) -> dict[str, str]:
    """The names of the weights that a sketch is made of: found on the model built without memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    depth = int(text.num_hidden_layers)
    names = {id(p): name for name, p in model.named_parameters()}
    lists = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if len(lists) != 1:
        raise DataError(f"the blocks of {type(model).__name__} can't be told from its configuration.")
    middle: list[Tensor] = [p for p in lists[0][depth // 2].parameters() if p.ndim == 2]
    largest = max(middle, key=Tensor.numel)
    return {"embed": names[id(model.get_input_embeddings().weight)], "block": names[id(largest)]}


def _tensor(folder: Path, name: str) -> Tensor | None:
    """A matrix of a checkpoint; None where it isn't there, or is packed."""
    from safetensors import safe_open

    index = folder / "model.safetensors.index.json"
    shards: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"] if index.is_file() else {}
    file = shards.get(name) if shards else "model.safetensors"
    if file is None or not (folder / file).is_file():
        return None
    with safe_open(folder / file, framework="pt") as found:
        if name not in found.keys():  # noqa: SIM118  # not a mapping
            return None
        weight = found.get_tensor(name)
    return weight if weight.ndim == 2 and weight.is_floating_point() else None
