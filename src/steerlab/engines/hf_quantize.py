"""Models in 4 or 8 bits: how a precision is written, how bitsandbytes loads one, and what a quantised model says of itself.

A precision is one line of text, so that whatever passes a dtype on passes this on, too: `bfloat16`, `4bit`, `bfloat16+4bit`.
"""

from __future__ import annotations

import importlib.util
import logging
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from ..errors import ConfigError, nearest

Quantize = Literal["4bit", "8bit"]
KINDS: tuple[Quantize, ...] = ("4bit", "8bit")
DTYPES = ("auto", "float32", "bfloat16", "float16")


def precision(dtype: str, quantize: str | None) -> str:
    """A dtype and 4bit or 8bit (or None) in one line of text. Raises `ConfigError` for a quantisation that doesn't exist."""
    if quantize is None:
        return dtype
    if quantize not in KINDS:
        raise ConfigError(f"there is no quantisation {quantize!r}; expected {' or '.join(KINDS)}.")
    _, before = taken_apart(dtype)
    if before not in (None, quantize):
        raise ConfigError(f"the precision {dtype!r} is quantised already, and {quantize} was wanted; give one of them.")
    return dtype if before else quantize if dtype == "auto" else f"{dtype}+{quantize}"


def taken_apart(text: str) -> tuple[str, Quantize | None]:
    """A precision's dtype (auto where it names none), and its quantisation. Raises `ConfigError` for no such form."""
    parts = text.split("+")
    kinds: list[Quantize] = [kind for p in parts for kind in KINDS if p == kind]
    if not kinds:
        if text.rstrip("s").endswith("bit") and text not in DTYPES:  # 4-bit, int4bit, 4bits
            raise ConfigError(f"there is no quantisation {text!r}; expected {' or '.join(KINDS)}.")
        return text, None
    rest = [p for p in parts if p not in KINDS]
    if len(kinds) > 1 or len(rest) > 1 or (rest and rest[0] not in DTYPES):
        wrong = next((p for p in rest if p not in DTYPES), text)
        raise ConfigError(
            f"the precision {text!r} isn't a dtype and a quantisation, such as 4bit or bfloat16+8bit. {nearest(wrong, DTYPES)}"
        )
    return (rest[0] if rest else "auto"), kinds[0]


def settings(name: str, revision: str | None, dtype: str, kind: Quantize) -> Any:
    """What tells transformers to load a model by bitsandbytes: LLM.int8(), or 4-bit NormalFloat that computes in the dtype.

    Raises `ConfigError` where bitsandbytes or accelerate isn't installed, or the model's weights are quantised already.
    """
    from transformers import AutoConfig, BitsAndBytesConfig

    missing = [p for p in ("bitsandbytes", "accelerate") if importlib.util.find_spec(p) is None]
    if missing:
        raise ConfigError(
            f"quantize={kind} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed; run pip"
            " install 'steerlab[quantize]', or load the model in bfloat16 (--dtype bfloat16)."
        )
    config: Any = AutoConfig.from_pretrained(name, revision=revision)
    before = getattr(config, "quantization_config", None)
    if before is not None:
        raise ConfigError(
            f"the weights of {name!r} are quantised already ({_described(before) or 'in a form of their own'}); leave --quantize"
            " out."
        )
    if kind == "8bit":
        for logger in {"bitsandbytes", *(n for n in logging.root.manager.loggerDict if n.startswith("bitsandbytes"))}:
            logging.getLogger(logger).addFilter(_ONCE)
        return BitsAndBytesConfig(load_in_8bit=True)
    held = getattr(config, "dtype", None) if dtype == "auto" else getattr(torch, dtype)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=held if isinstance(held, torch.dtype) else torch.float32,
    )


def quantisation(model: nn.Module) -> str | None:
    """How a model's weights are quantised, in words; None where they aren't."""
    described = _described(getattr(getattr(model, "config", None), "quantization_config", None))
    if described is not None:
        return described
    kinds = {type(p.data).__name__ for p in model.parameters() if is_wrapped(p)}
    return ", ".join(sorted(kinds)) or None


def is_wrapped(t: Tensor) -> bool:
    """Whether a tensor only stands for one of its shape, and holds another form inside (torchao's are such)."""
    return hasattr(t, "__tensor_flatten__")


def inside(t: Tensor) -> dict[str, Tensor]:
    """The plain tensors by name that a wrapped one holds."""
    names, _ = cast("Any", t).__tensor_flatten__()
    plain: dict[str, Tensor] = {}
    for name in names:
        held = getattr(t, name)
        more = inside(held) if is_wrapped(held) else {"": held}
        plain |= {f"{name}.{key}" if key else name: value for key, value in more.items()}
    return plain


def _described(config: Any) -> str | None:
    if config is None:
        return None
    settings: dict[str, Any] = config if isinstance(config, dict) else config.to_dict()
    method = str(getattr(settings.get("quant_method"), "value", settings.get("quant_method") or "quantised"))
    if settings.get("load_in_8bit"):
        return f"{method} 8 bit"
    if settings.get("load_in_4bit"):
        return f"{method} 4 bit {settings.get('bnb_4bit_quant_type', '')}".strip()
    bits = settings.get("bits") or settings.get("w_bit")
    return f"{method} {bits} bit" if bits else method


class _Once(logging.Filter):
    """Lets what is said of a cast through once, and not at every matrix of every pass."""

    def __init__(self) -> None:
        super().__init__()
        self._seen: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        words = record.getMessage()
        if "inputs will be cast" not in words:
            return True
        fresh = words not in self._seen
        self._seen.add(words)
        return fresh


_ONCE = _Once()
