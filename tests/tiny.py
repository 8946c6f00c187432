"""Tiny random models of thirteen architectures: real transformers classes at toy sizes."""

from __future__ import annotations

import functools

import torch
from transformers import AutoConfig, AutoModelForCausalLM

SMALL = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 97, "max_position_embeddings": 128}
GATED = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, object]] = {
    "llama": GATED,
    "mistral": {**GATED, "sliding_window": 8},
    "qwen2": GATED,
    "qwen3": {**GATED, "head_dim": 12},
    "gemma2": {**GATED, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {**GATED, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "phi3": {**GATED, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "olmo2": GATED,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 97, "n_positions": 128},
    "gpt_neox": {**SMALL, "intermediate_size": 48, "rotary_pct": 0.5},
    "falcon": {**SMALL, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    "mixtral": {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **GATED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    },
}  # fmt: skip


@functools.lru_cache(maxsize=None)
def model(name: str, seed: int = 0):
    """The model of an architecture, float32, evaluation mode; shared between tests, which must leave it as it was."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **ARCHITECTURES[name])
    built = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():  # random norms and biases, so that a site next to a norm differs from the one before it
        for p in built.parameters():
            p.add_(torch.randn(p.shape) * (0.3 if p.ndim == 1 else 0.1))
    return built
