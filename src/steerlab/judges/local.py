"""Asks a Hugging Face model on this machine: greedy unless told otherwise, in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import JudgeError
from .answers import Answer


class Loaded(NamedTuple):
    """A model with its tokenizer."""

    model: Any
    tokenizer: Any


@lru_cache(maxsize=2)
def loaded(name: str, revision: str | None, device: str, kind: str = "AutoModelForCausalLM") -> Loaded:
    """A model in evaluation mode. Raises `JudgeError` where it can't be loaded."""
    import transformers
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(name, revision=revision)
        model = getattr(transformers, kind).from_pretrained(name, revision=revision, dtype="auto").to(device).eval()
    except (OSError, ValueError, ImportError) as problem:
        told = " ".join(str(problem).split())[:300]
        where = (
            ""
            if Path(name).exists()
            else " It is neither a folder here nor, it seems, a name on the hub that can be reached."
        )
        raise JudgeError(f"the judging model {name!r} can't be loaded: {told}.{where}") from problem
    finally:
        if shown:
            logging.enable_progress_bar()
    pad = model.config.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id >= rows:  # added without a row of the embedding
        pad = pad if pad is not None and pad < rows else None
        tokenizer.pad_token = tokenizer.eos_token if pad is None else tokenizer.convert_ids_to_tokens(pad)
    model.config.pad_token_id = tokenizer.pad_token_id  # a classifier reads at the last token that isn't this one
    tokenizer.padding_side = "left" if kind == "AutoModelForCausalLM" else "right"
    return Loaded(model, tokenizer)


def harmless(of: Loaded, text: str) -> str:
    """The text as a tokenizer can take it: no half characters, and nothing that it would take for a token of its own."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    for token in of.tokenizer.all_special_tokens:
        text = text.replace(token, f"{token[0]} {token[1:]}") if len(token) > 1 else text
    return text


def special_tokens(name: str, revision: str | None, device: str) -> tuple[str, ...]:
    """What the tokenizer takes for more than text."""
    tokenizer = loaded(name, revision, device).tokenizer
    added = (t.content for t in tokenizer.added_tokens_decoder.values())
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


def answers(
    name: str,
    revision: str | None,
    device: str,
    asked: Sequence[str],
    *,
    tokens: int,
    temperature: float,
    seed: int,
    batch: int,
) -> Iterator[tuple[int, Answer]]:
    """(place, answer) for each message as its batch is done, the longest first. Through the chat template where there is one."""
    import torch

    model, tokenizer = loaded(name, revision, device)
    texts = [_rendered(tokenizer, message) for message in asked]
    most = room(Loaded(model, tokenizer))
    ids = [tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"] for text in texts]
    order = sorted(range(len(ids)), key=lambda n: (-len(ids[n]), n))
    for start in range(0, len(order), batch):
        part = order[start : start + batch]
        # what is longer than the model can read loses its beginning: the question's end is what must be seen
        rows = [ids[n][-max(1, most - tokens) :] for n in part]
        width = max(map(len, rows))
        pad = tokenizer.pad_token_id or 0
        block = torch.tensor([[pad] * (width - len(r)) + r for r in rows], device=model.device)
        seen = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows], device=model.device)
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = (
                {"do_sample": True, "temperature": temperature}
                if temperature
                else {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
            )
            out = model.generate(
                block, attention_mask=seen, max_new_tokens=min(tokens, max(1, most - width)), pad_token_id=pad, **drawn
            )
        for n, row in zip(part, out[:, width:].tolist(), strict=True):
            ends = {tokenizer.eos_token_id, *_ends(model)}
            said = next((i for i, t in enumerate(row) if t in ends), len(row))
            text = tokenizer.decode(row[:said], skip_special_tokens=True)
            yield n, Answer(text, said == len(row), len(ids[n]), said)


def _rendered(tokenizer: Any, message: str) -> str:
    if tokenizer.chat_template is None:
        return f"{message}\n\n"
    return tokenizer.apply_chat_template(
        [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
    )


def _ends(model: Any) -> set[int]:
    found = model.generation_config.eos_token_id
    return set() if found is None else {found} if isinstance(found, int) else set(found)


def room(of: Loaded) -> int:
    """The tokens that a model can read."""
    given = [getattr(of.model.config, "max_position_embeddings", None), getattr(of.tokenizer, "model_max_length", None)]
    return min([int(n) for n in given if n and n < 10**9], default=4096)
