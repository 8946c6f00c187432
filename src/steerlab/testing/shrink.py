"""Any architecture of transformers' list of causal models at a toy size: its own configuration, made small by name.

Sizes go by what configurations call them; what a kind needs beside that is in `ALSO`.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch

DEPTH, WIDTH, VOCABULARY = 3, 32, 97
SIZES: dict[str, Any] = {
    # width
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embedding_size", "emb_dim", "embed_dim"), WIDTH),
    **dict.fromkeys(("word_embed_proj_dim", "lru_width", "attention_hidden_size", "linear_attn_dim"), WIDTH),
    # depth
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "num_decoder_layers"), DEPTH),
    **dict.fromkeys(("encoder_layers", "num_encoder_layers"), DEPTH),
    # inner width
    **dict.fromkeys(("intermediate_size", "ffn_dim", "decoder_ffn_dim", "encoder_ffn_dim", "n_inner", "dim_ff"), 48),
    **dict.fromkeys(("feed_forward_size", "ffn_hidden_size", "intermediate_size_mlp", "shared_intermediate_size"), 48),
    **dict.fromkeys(("moe_intermediate_size", "moe_shared_expert_intermediate_size", "shared_expert_intermediate_size"), 24),
    **dict.fromkeys(("expert_hidden_size", "expert_intermediate_size", "dense_intermediate_size", "attn_mlp_hidden_size"), 24),
    "moe_latent_size": None,
    # heads
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_decoder_attention_heads", "num_encoder_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "attention_head_dim", "swa_head_dim", "global_head_dim"), 8),
    "swa_num_attention_heads": 4,
    "v_head_dim": 8, "swa_v_head_dim": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "q_lora_rank": 16, "kv_lora_rank": 16,
    "rotary_dim": 4, "o_lora_rank": 16, "qk_head_dim": 8,
    "index_head_dim": 8, "index_n_heads": 2, "index_topk": 64,
    # experts
    **dict.fromkeys(("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "top_k_experts", "moe_k"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_groups", "n_groups_experts"), 1),
    **dict.fromkeys(("first_k_dense_replace", "n_shared_experts", "num_shared_experts", "zero_expert_num"), 1),
    # recurrent layers
    "mamba_n_heads": 4, "mamba_num_heads": 4, "mamba_d_head": 16, "mamba_head_dim": 16, "mamba_d_state": 8, "mamba_n_groups": 1,
    "mamba_d_ssm": 64, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_dt_rank": 4, "mamba_chunk_size": 8, "time_step_rank": 4,
    "state_size": 8, "ssm_state_size": 8, "n_groups": 1, "n_mamba_heads": 2, "mamba_ngroups": 1, "mamba_headdim": 16,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "conv_L_cache": 3, "block_ff_dim": 48, "block_dim": WIDTH, "conv_dim": WIDTH, "conv_dim_out": WIDTH,
    "linear_attn_num_heads": 4, "block_multiple_of": 8, "chunk_size": 8,
    # words and places
    "vocab_size": VOCABULARY, "n_positions": 128, "max_position_embeddings": 128, "n_ctx": 128, "context_length": 128,
    "max_seq_len": 128, "max_sequence_length": 128, "max_target_positions": 128, "max_source_positions": 128,
    "original_max_position_embeddings": 128, "vocab_size_per_layer_input": VOCABULARY, "hidden_size_per_layer_input": 8,
    "sliding_window": 8, "attention_window_size": 8, "local_attention": 8, "attention_chunk_size": 64, "window_size": 8,
    "query_pre_attn_scalar": 8, "attn_scale": 8,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 1,
    "dropout": 0.0,
}  # fmt: skip
MLA = {"num_key_value_heads": 4, "head_dim": 4, "qk_head_dim": 8}
ROPE = {"rope_theta": 10000.0, "rope_type": "default"}
ALWAYS = ("num_key_value_heads",)
LISTS = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "moe_layers",
    "sliding_window_pattern_list",
    "no_rope_layers",
)
ALSO: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "deepseek_v3", "longcat_flash", "youtu", "minicpm3", "glm4_moe_lite"), MLA),
    "deepseek_v2": {**MLA, "topk_method": "greedy", "num_experts_per_tok": 2},
    "axk2": MLA,
    "deepseek_v32": MLA,
    "glm_moe_dsa": MLA,
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention", "linear_attention"]},
    "recurrent_gemma": {"block_types": ["recurrent", "recurrent", "attention"]},
    "gpt_neo": {"attention_types": [[["global", "local", "global"], 1]]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "llama4_text": {"attn_scale": 0.1, "attention_chunk_size": 8},
    "llama4": {"text": {"attn_scale": 0.1, "attention_chunk_size": 8}},
    "kimi_linear": {**MLA, "linear_head_dim": 8, "linear_num_heads": 4},
    "qwen4_exp_text": {"compress_ratio": 4, "token_budget": 16},
    "ministral": {"head_dim": 8},
    "zaya": {"num_experts_per_tok": 1},
    "xlstm": {"head_dim": None},
    "reformer": {
        "axial_pos_shape": [8, 16],
        "axial_pos_embds_dim": [16, 16],
        "attn_layers": ["local", "lsh", "local"],
        "attention_head_size": 8,
        "lsh_attn_chunk_length": 8,
        "local_attn_chunk_length": 8,
        "num_buckets": 4,
    },
    "dots1": {"num_experts_per_tok": 2, "n_routed_experts": 4, "n_shared_experts": 1},
    "hunyuan_v1_dense": {"head_dim": 8, "rope_parameters": ROPE},
    "hunyuan_v1_moe": {"head_dim": 8, "rope_parameters": ROPE, "moe_topk": 2},
    "mamba2": {"num_heads": 4, "head_dim": 16, "expand": 2},
    "zamba": {
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_hidden_layers": 4,
    },
    "zamba2": {
        "hidden_size": 32,
        "layers_block_type": ["mamba", "hybrid", "mamba"],
        "attention_head_dim": 16,
        "attention_hidden_size": 64,
        "num_key_value_heads": 4,
        "num_mem_blocks": 1,
        "mamba_headdim": 16,
    },
    "gemma3n_text": {
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "laurel_rank": 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "gemma4_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "global_head_dim": 8,
    },
    "gemma4_unified_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "global_head_dim": 8,
    },
}


def shrunk(config: Any, also: dict[str, Any]) -> Any:
    """A configuration of the same class with small sizes."""
    takes = {
        n for n in (*vars(config), *inspect.signature(type(config).__init__).parameters) if not _fixed(type(config), n)
    }
    names = getattr(type(config), "attribute_map", {})
    given: dict[str, Any] = {}
    for name, value in SIZES.items():
        old = _value(config, name)
        if name in takes and name not in names and (old is not None or name in ALWAYS):
            if isinstance(old, (list, tuple)) and name not in also:
                value = [value] * DEPTH
            given[name] = value
    depth = also.get("num_hidden_layers", DEPTH)
    for name in LISTS:
        old = _value(config, name)
        if name in takes and isinstance(old, (list, tuple)) and old:
            kinds = list(dict.fromkeys(map(str, old)))
            picked = [next(o for o in old if str(o) == k) for k in kinds]
            given[name] = (picked * depth)[:depth]
    given |= also
    return type(config)(**given)


def _fixed(kind: type, name: str) -> bool:
    """Whether it is worked out of other sizes."""
    found = getattr(kind, name, None)
    return isinstance(found, property) and found.fset is None


def _value(config: Any, name: str) -> Any:
    try:
        return vars(config).get(name, getattr(config, name, None))
    except Exception:  # noqa: BLE001  # some sizes differ by layer, and say so
        return None


def config_of(kind: str) -> Any:
    """A small configuration of a model type, its parts small too."""
    from transformers import AutoConfig

    whole = AutoConfig.for_model(kind)
    also = dict(ALSO.get(kind, {}))
    inner = also.pop("text", {})
    made = shrunk(whole, also)
    text = made.get_text_config(decoder=True)
    if text is not made:
        parts = {}
        for name in getattr(type(whole), "sub_configs", {}):
            part = getattr(whole, name, None)
            if part is not None:
                parts[name] = shrunk(part, inner if "text" in name or "decoder" in name or "llm" in name else {})
        made = shrunk(whole, {**also, **parts})
    if hasattr(made, "is_decoder"):
        made.is_decoder = True
    return made


def model_of(kind: str, dtype: torch.dtype = torch.float32) -> Any:
    """A small random model of a model type, in evaluation mode, norms and biases random too."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    built = AutoModelForCausalLM.from_config(config_of(kind), dtype=torch.float32).eval()
    with torch.no_grad():
        for p in built.parameters():
            p.add_(torch.randn(p.shape) * (0.3 if p.ndim == 1 else 0.1))
    return built.to(dtype)
