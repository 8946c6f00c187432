"""PEFT's adapters: a folder with `adapter_config.json` and `adapter_model.safetensors`, for changes of matrices.

Written are `Delta`s and whatever is a change of one matrix exactly (`linear`): W + B·A with lora_alpha = r, each matrix of its
own rank (`rank_pattern`). A change of a bias goes to `lora_B.bias` (`lora_bias`), which PEFT on transformers runs and vLLM does
not. Read are LoRA and rsLoRA as `Delta`s at strength 1 in [0, 1], their biases as `Shift`s of what the matrix gives where that
is a site. Not read: DoRA, other kinds of adapters, biases and modules saved whole, embeddings, experts in one tensor.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..deltas import Delta
from ..edits import Shift
from ..engines.hf import HFEngine
from ..errors import ArtefactError, EditError
from ..files import whole, write_text
from ..positions import ALL
from ..sites import Site
from ..steering import Intervention, Steering
from .base import Format, Hints, Written, as_vector, imported, provenance_lost
from .linear import changes

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"base_model\.model\.(?P<path>.+)\.lora_(?P<part>A|B)\.(?P<what>weight|bias)")
IN_BLOCK = re.compile(r"(?:.+\.)?(?:layers|h|blocks|layer|block)\.(?P<layer>\d+)\.(?P<matrix>.+)")
GIVES = {"o_proj": "attn", "out_proj": "attn", "c_proj": None, "down_proj": "mlp", "fc2": "mlp", "dense_4h_to_h": "mlp",
         "q_proj": "q", "k_proj": "k", "v_proj": "v"}  # fmt: skip
PLAIN: dict[str, Any] = {
    "bias": "none", "use_dora": False, "modules_to_save": None, "layer_replication": None, "megatron_config": None,
    "trainable_token_indices": None, "target_parameters": None, "use_qalora": False, "use_bdlora": None, "arrow_config": None,
    "alora_invocation_tokens": None, "velora_config": None, "kasa_config": None, "monteclora_config": None,
}  # fmt: skip


class LoRA(Format):
    """An adapter for PEFT."""

    what: ClassVar[str] = "PEFT's LoRA adapter (a folder)"
    holds: ClassVar[str] = (
        "Delta, and what one matrix can do at every token (added vectors by lora_bias, Ablate of what is written)"
    )
    needs_model: ClassVar[bool] = True

    def refuses(self, steering: Steering, engine: HFEngine | None = None) -> list[str]:
        assert engine is not None, "this format needs the model"
        return changes(steering, engine, self.name)[2]

    def write(self, steering: Steering, path: Path, engine: HFEngine | None = None) -> Written:
        assert engine is not None, "this format needs the model"
        engine.accept(steering)
        self.check(steering, engine)
        made, _, _ = changes(steering, engine, self.name)
        tensors: dict[str, Tensor] = {}
        ranks: dict[str, int] = {}
        biased = any(c.new_bias is not None for c in made.values())
        for module, change in made.items():
            height, width = change.stored.shape
            left, right = change.factors() or (torch.zeros(height, 1), torch.zeros(1, width))
            ranks[module] = left.shape[1]
            name = f"base_model.model.{module}"
            tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"] = right, left
            if biased:
                bias = change.new_bias
                tensors[f"{name}.lora_B.bias"] = torch.zeros(height) if bias is None else bias
        first = next(iter(ranks.values()))
        config = {
            "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": steering.meta.model or engine.name,
            "revision": steering.meta.revision, "r": first, "lora_alpha": first, "rank_pattern": ranks,
            "alpha_pattern": ranks, "target_modules": sorted(made), "lora_dropout": 0.0, "lora_bias": biased, "bias": "none",
            "fan_in_fan_out": any(not isinstance(c.module, torch.nn.Linear) for c in made.values()),
            "init_lora_weights": True, "inference_mode": True, "use_rslora": False, "use_dora": False, "modules_to_save": None,
        }  # fmt: skip
        _save(path / WEIGHTS, tensors)
        write_text(path / CONFIG, json.dumps(config, indent=1) + "\n")
        lost = [
            *provenance_lost(steering, kept=("model",)),
            "it runs from 0 to 1 there: other strengths, and the opposite, need a new export",
        ]
        if biased:
            lost.append("its biases run on transformers with PEFT alone: vLLM and llama.cpp have no lora_B.bias")
        if any(not isinstance(i.edit, Delta) for i in steering.interventions):
            lost.append("the edits of activations are changes of matrices from now on (read back, they are Delta)")
        return Written((path / CONFIG, path / WEIGHTS), tuple(lost))

    def claims(self, path: Path) -> bool:
        return path.is_dir() and (path / CONFIG).is_file()

    def read(self, path: Path, hints: Hints) -> Steering:
        config = _config(path / CONFIG)
        if config.get("peft_type") != "LORA":
            raise ArtefactError(f"{path} holds a {config.get('peft_type')!r} adapter; read are LORA adapters.")
        odd = {k: config[k] for k, usual in PLAIN.items() if config.get(k, usual) not in (usual, None, False, [], {})}
        if odd:
            raise ArtefactError(
                f"{path} has {odd}, which isn't a plain change of matrices; merge the adapter into its model instead."
            )
        tensors = _tensors(path / WEIGHTS)
        parts: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            found = KEY.fullmatch(name)
            if not found:
                raise ArtefactError(
                    f"{path} holds the tensor {name!r}; expected lora_A and lora_B of matrices in blocks."
                )
            parts.setdefault(found["path"], {})[f"{found['part']}.{found['what']}"] = tensor
        made = [i for module, mine in parts.items() for i in _interventions(module, mine, config, path)]
        model = config.get("base_model_name_or_path")
        return Steering(tuple(made), meta=imported(path, self.name, model=model if isinstance(model, str) else None))


def _interventions(module: str, mine: dict[str, Tensor], config: dict[str, Any], path: Path) -> list[Intervention]:
    """A matrix's change, and its bias, where there is one."""
    where = IN_BLOCK.fullmatch(module)
    if where is None or "A.weight" not in mine or "B.weight" not in mine:
        raise ArtefactError(f"{path} changes {module!r} by {sorted(mine)}; expected A and B of a matrix in a block.")
    layer, matrix = int(where["layer"]), where["matrix"]
    right, left = mine["A.weight"].float(), mine["B.weight"].float()
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ArtefactError(
            f"{path}: {module} has A {list(right.shape)} and B {list(left.shape)}; expected [r, in] and [out, r]."
        )
    scale = _scale(module, right.shape[0], config, path)
    made: list[Intervention] = []
    try:
        if bool(left.any()) and bool(right.any()):
            made.append(Intervention(Site(layer, f"w:{matrix}"), Delta(scale * left, right), ALL))
        if "B.bias" in mine and bool(mine["B.bias"].any()):
            vector = as_vector(mine["B.bias"], f"{module}'s bias", path)
            made.append(Intervention(_given(layer, matrix, path), Shift(scale * vector), ALL))
    except EditError as problem:
        raise ArtefactError(f"{path}: {module} is no valid change of a matrix: {problem}") from problem
    return made


def _scale(module: str, rank: int, config: dict[str, Any], path: Path) -> float:
    """lora_alpha / r, of this module where patterns say so; / √r in rsLoRA."""

    def of(pattern: str, usual: str) -> float:
        patterns = cast("dict[str, Any]", config.get(pattern) or {})
        mine = [v for k, v in patterns.items() if module == k or module.endswith(f".{k}")]
        value = mine[0] if mine else config.get(usual)
        if not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise ArtefactError(f"{path} has {usual}={value!r} for {module}; expected a positive number.")
        return float(value)

    told = of("rank_pattern", "r")
    if told != rank:
        raise ArtefactError(f"{path} says r = {told:g} for {module}, whose A has {rank} rows.")
    return of("alpha_pattern", "lora_alpha") / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _given(layer: int, matrix: str, path: Path) -> Site:
    """The site that holds what a matrix gives."""
    name = matrix.rsplit(".", 1)[-1]
    part = GIVES.get(name) or {"attn.c_proj": "attn", "mlp.c_proj": "mlp"}.get(matrix)
    if part is None:
        raise ArtefactError(f"{path} adds a bias to what {matrix} of block {layer} gives, which is no site here.")
    return Site(layer, part)


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise ArtefactError(
            f"{path} isn't readable JSON ({problem}); expected an adapter's configuration."
        ) from problem
    if not isinstance(found, dict):
        raise ArtefactError(f"{path} holds {type(found).__name__}; expected a JSON object.")
    return cast("dict[str, Any]", found)


def _tensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        also = (
            " (its adapter_model.bin is a pickle and isn't read)"
            if (path.parent / "adapter_model.bin").exists()
            else ""
        )
        raise ArtefactError(f"there is no file {path}{also}; save the adapter with safetensors.")
    try:
        return load_file(path)
    except (SafetensorError, OSError, UnicodeDecodeError) as problem:
        raise ArtefactError(f"{path} is not a readable safetensors file: {problem}.") from problem


def _save(path: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    with whole(path) as part:
        save_file(
            {k: t.detach().cpu().contiguous().clone() for k, t in tensors.items()}, part, metadata={"format": "pt"}
        )
