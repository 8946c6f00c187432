"""Tiny random models of thirteen architectures (real transformers classes at toy sizes) and a tokenizer of words."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from ..engines.hf import HFEngine

VOCABULARY = 97
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GATED: dict[str, Any] = {**SMALL, "intermediate_size": 48, "num_key_value_heads": 2}
WINDOWED: dict[str, Any] = {**GATED, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "mistral": {**GATED, "sliding_window": 8},
    "qwen2": GATED,
    "qwen3": {**GATED, "head_dim": 12},
    "gemma2": WINDOWED,
    "gemma3_text": WINDOWED,
    "phi3": GATED,
    "olmo2": GATED,
    "gpt2": {
        "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 128,
        "bos_token_id": 1, "eos_token_id": 2,
    },
    "gpt_neox": {**SMALL, "intermediate_size": 48, "rotary_pct": 0.5},
    "falcon": {**SMALL, "num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    "mixtral": {**GATED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **GATED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24,
    },
}  # fmt: skip
WORDS = tuple(f"w{n}" for n in range(VOCABULARY - 8))
CHAT = (
    "<bos> {% for m in messages %}<{{ m.role }}> {{ m.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %} <assistant>{% endif %}"
)


@functools.cache
def model(name: str, seed: int = 0, dtype: str = "float32") -> PreTrainedModel:
    """A random model of an architecture, in evaluation mode; shared between tests, which leave it as it was.

    Norms and biases are random too, so that a site beside a norm differs from the one before it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    config = AutoConfig.for_model(name, **ARCHITECTURES[name])
    built = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for p in built.parameters():
            p.add_(torch.randn(p.shape) * (0.3 if p.ndim == 1 else 0.1))
    if dtype == "float64":  # fused kernels for experts know no float64
        built.config._experts_implementation = "eager"  # pyright: ignore[reportPrivateUsage]
    return built.to(getattr(torch, dtype))


@functools.cache
def tokenizer(*, chat: bool = True) -> PreTrainedTokenizerFast:
    """One token per word, with a chat template unless told otherwise."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<bos>", "<end>", "<system>", "<user>", "<assistant>", "<unk>", "<spare>"]
    vocabulary = {word: n for n, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # only the end token is special: whatever else a random model says, its text gives the same ids again
    built = PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<end>")
    if chat:
        built.chat_template = CHAT
    return built


def engine(name: str = "llama", *, dtype: str = "float32", **settings: Any) -> HFEngine:
    """An engine on a tiny model; those of one model and settings are one, which tests leave as it was."""
    return _engine(name, dtype, tuple(sorted(settings.items())))


@functools.cache
def _engine(name: str, dtype: str, settings: tuple[tuple[str, Any], ...]) -> HFEngine:
    chat = dict(settings).get("template", "chat") == "chat"
    built = new_engine(name, dtype=dtype, chat=chat, **dict(settings))
    _warm(built)
    return built


def new_engine(name: str = "llama", *, dtype: str = "float32", chat: bool = True, **settings: Any) -> HFEngine:
    """An engine of one's own on a tiny model, which knows nothing of it yet."""
    from ..engines.hf import HFEngine

    return HFEngine(model(name, dtype=dtype), tokenizer(chat=chat), name=f"tiny {name}", **settings)


def _warm(engine: HFEngine) -> None:
    """Ask once for what a model's trial finds, so that a test which watches passes sees none but its own."""
    trial = engine.trial
    if trial.causal and trial.refusal is None:
        _ = (trial.pads("left"), trial.pads("right"), trial.mixed, trial.alike, trial.joins)


def words(generator: torch.Generator, n: int) -> str:
    """A text of n random words."""
    picked = torch.randint(len(WORDS), (n,), generator=generator).tolist()
    return " ".join(WORDS[i] for i in picked)


def prompts(seed: int = 0, lengths: tuple[int, ...] = (3, 11, 6)) -> list[str]:
    """Texts of random words, so many in each."""
    generator = torch.Generator().manual_seed(seed)
    return [words(generator, n) for n in lengths]
