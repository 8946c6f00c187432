"""What every engine owes a row in company: it gives what it gives alone, padded, cached, in pieces, and on a server's thread.

Each check returns the greatest difference in log-probability that it saw (nats), infinity where other tokens were chosen.
"""

from __future__ import annotations

import dataclasses
import queue
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..contrast import Example, Message
from ..edits import Clamp, Shift
from ..engines.base import Reply, Sampling
from ..engines.hf_rows import padded
from ..positions import GENERATED, NOT_TEMPLATE
from ..sites import Site
from ..steering import Intervention, Steering
from .tiny import words

if TYPE_CHECKING:
    from ..engines.hf import HFEngine

LENGTHS = (3, 17, 1, 9)  # words of the prompts: below a convolution's kernel, and above a window of 8
LIMITS = (9, 3, 14, 6)  # tokens of the replies


def prompts(seed: int = 5) -> list[str]:
    """Texts of random words of these lengths."""
    draw = torch.Generator().manual_seed(seed)
    return [words(draw, n) for n in LENGTHS]


def steerings(engine: HFEngine, seed: int = 6) -> list[Steering | None]:
    """A row's own for each prompt: none, a shift, a clamp where replies are, and the shift reversed."""
    draw = torch.Generator().manual_seed(seed)
    middle = Site(engine.depth // 2)
    width = engine.width(middle)
    shift = Steering((Intervention(middle, Shift(0.7 * torch.randn(width, generator=draw)), NOT_TEMPLATE),))
    clamp = Steering((Intervention(Site(engine.depth - 1), Clamp.random(width, draw), GENERATED),))
    return [shift, None, clamp, shift.scaled(-0.5)]


def scoring(engine: HFEngine) -> float:
    """Answers scored in one batch against each alone."""
    draw = torch.Generator().manual_seed(7)
    examples = [Example.ask(text, words(draw, 2 + n)) for n, text in enumerate(prompts())]
    each = steerings(engine)
    together = engine.logprobs(examples, each)
    alone = [engine.logprobs([example], one)[0] for example, one in zip(examples, each, strict=True)]
    return max(_off(a.tolist(), b.tolist()) for a, b in zip(together, alone, strict=True))


def reading(engine: HFEngine) -> float:
    """Activations captured in one batch against each alone, beside their own size."""
    site = Site(engine.depth - 1)
    examples = [Example.ask(text) for text in prompts()]
    together = engine.capture(examples, [site])[site].values
    alone = torch.cat([engine.capture([example], [site])[site].values for example in examples])
    return float((together - alone).abs().max() / alone.abs().max())


def decoding(engine: HFEngine) -> float:
    """Replies in one batch, which rows leave when they end, against each alone."""
    each, sampling = steerings(engine), Sampling(max_new_tokens=max(LIMITS), seed=(1, 2, 3, 4), temperature=0.7)
    together = engine.generate(prompts(), each, sampling)
    one = [dataclasses.replace(sampling, seed=(n + 1,)) for n in range(len(each))]
    alone = [engine.generate([t], s, one[n])[0] for n, (t, s) in enumerate(zip(prompts(), each, strict=True))]
    return max(_apart(a, b) for a, b in zip(together, alone, strict=True))


def caching(engine: HFEngine) -> float:
    """Replies decoded step by step against one pass over prompt and reply, without a cache."""
    off = 0.0
    for text, steering in zip(prompts(), steerings(engine), strict=True):
        made = engine.generate([text], steering, Sampling(max_new_tokens=8))[0]
        asked = engine.renderer.prompt(Example.ask(text).messages)
        whole = [*asked.ids, *made.ids]
        batch = padded([whole], [len(asked.ids)], [asked.head], pad=engine.pad, padding="right").to(engine.device)
        with torch.no_grad(), engine.steer_batch(batch, [steering]):
            scores = engine.model(input_ids=batch.ids, **_told(engine)).logits[0].float()
        answer = torch.tensor(made.ids, dtype=torch.long)
        found = scores[len(asked.ids) - 1 : -1].log_softmax(dim=-1).cpu()
        off = max(off, _off(found.gather(1, answer[:, None])[:, 0].tolist(), list(made.logprobs[: len(answer)])))
    return off


def serving(engine: HFEngine, folder: Path) -> float:
    """Replies of different `max_tokens`, asked of the server's own scheduler at once and one after the other, against alone."""
    from ..engines.hf_serving import Ask, Prompts
    from ..serve.metrics import Metrics
    from ..serve.scheduler import Done, Failed, Job, Scheduler
    from ..serve.settings import Settings

    scheduler, asked = Scheduler(engine, Settings(store=folder), Metrics()), Prompts(engine)
    scheduler.start()
    try:
        made: list[tuple[str, Steering | None, Sampling, Any]] = []
        for n, (text, steering) in enumerate(zip(prompts(), steerings(engine), strict=True)):
            sampling, told = Sampling(LIMITS[n], seed=n), queue.SimpleQueue[Any]()
            prompt = asked.chat([Message("user", text)])
            ask = Ask(prompt, steering, sampling)
            scheduler.check(ask)
            scheduler.submit([Job(ask, told.put)])
            made.append((text, steering, sampling, told))
        replies: list[Reply] = []
        for *_, told in made:
            event = told.get(timeout=60)
            while not isinstance(event, (Done, Failed)):
                event = told.get(timeout=60)
            if isinstance(event, Failed):
                raise RuntimeError(f"the scheduler failed: {event.problem}")
            replies.append(event.reply)
    finally:
        scheduler.stop()  # the model is its thread's until then
    alone = [engine.generate([text], steering, sampling)[0] for text, steering, sampling, _ in made]
    return max(_apart(a, b) for a, b in zip(replies, alone, strict=True))


def all_of(make: Callable[..., HFEngine], folder: Path) -> dict[str, float]:
    """Every check; `make` gives an engine with these settings (padding, chunk)."""
    engine = make()
    found = {"scored, padded right": scoring(engine), "scored, padded left": scoring(make(padding="left"))}
    found |= {"captured": reading(engine), "captured, padded left": reading(make(padding="left"))}
    if engine.trial.refusal is None:
        found |= {"decoded": decoding(engine), "decoded, read in pieces": decoding(make(chunk=3))}
        found |= {"cached": caching(engine), "served": serving(engine, folder)}
    return found


def _told(engine: HFEngine) -> dict[str, Any]:
    from ..engines.hf_cache import takes, uncached

    return uncached(takes(engine.model))


def _apart(a: Reply, b: Reply) -> float:
    return _off(a.logprobs, b.logprobs) if (a.ids, a.finish) == (b.ids, b.finish) else float("inf")


def _off(a: Sequence[float], b: Sequence[float]) -> float:
    if len(a) != len(b):
        return float("inf")
    return max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)
