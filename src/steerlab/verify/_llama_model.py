"""A model of the Llama architecture as a GGUF file in float32, so that llama.cpp runs the very weights that are in memory.

Rows of the query and key projections are put in the order that its rotary embedding wants (pairs side by side rather than
halves). There is no tokenizer in the file: token ids are what is compared.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..engines.hf import HFEngine
from ..engines.hf_offload import State
from ..errors import UnsupportedError
from ..files import whole

NAMES = {
    "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def write_model(engine: HFEngine, path: Path) -> None:
    """Write it. Raises `UnsupportedError` for another architecture, or a rotary embedding that is scaled."""
    from ..exports._gguf import package

    config: Any = engine.model.config
    rope: Mapping[str, Any] = getattr(config, "rope_parameters", None) or {}
    if config.model_type != "llama" or rope.get("rope_type", "default") != "default" or config.hidden_act != "silu":
        raise UnsupportedError(
            f"{engine.name} ({config.model_type}) can't be written as GGUF here; only plain Llama models are, to be compared in"
            " llama.cpp. The exported vector itself is for any model: convert yours with llama.cpp's convert_hf_to_gguf.py."
        )
    size = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    gguf = package()
    with whole(path) as part:
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(size)
        writer.add_value_length(size)
        writer.add_rope_dimension_count(size)
        writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_vocab_size(config.vocab_size)
        writer.add_tokenizer_model("no_vocab")
        writer.add_file_type(0)
        for name, tensor in _tensors(engine, size):
            writer.add_tensor(name, np.ascontiguousarray(tensor.numpy(), dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _tensors(engine: HFEngine, size: int) -> list[tuple[str, Tensor]]:
    """The tensors under llama.cpp's names."""
    made: list[tuple[str, Tensor]] = []
    for name, value in State(engine.model).items():
        path, kind = name.rsplit(".", 1)
        t = value.detach().float().cpu()
        if path == "lm_head" and engine.model.config.tie_word_embeddings:
            continue
        if path in OUTSIDE:
            made.append((f"{OUTSIDE[path]}.{kind}", t))
            continue
        _, _, layer, inner = path.split(".", 3)  # model.layers.N.…
        if inner in ("self_attn.q_proj", "self_attn.k_proj"):
            rest = t.shape[1:]
            t = t.reshape(-1, 2, size // 2, *rest).transpose(1, 2).reshape(-1, *rest)
        made.append((f"blk.{layer}.{NAMES[inner]}.{kind}", t))
    return made
