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
from ..engines.base import Batch, Reply, Sampling
from ..engines.hf_rows import padded
from ..positions import GENERATED, NOT_TEMPLATE
from ..sites import Site
from ..steering import Intervention, Steering
from .tiny import words

if TYPE_CHECKING:
    from ..engines.hf import HFEngine

LENGTHS = (3, 17, 1, 9)  # words of the prompts: below a convolution's kernel, and above a window of 8
LIMITS = (9, 3, 11, 6)  # tokens of the replies


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


SAMPLING = Sampling(max_new_tokens=max(LIMITS), temperature=0.7)


def said_alone(engine: HFEngine) -> list[Reply]:
    """Each prompt's reply under its own steering, alone, drawn from its place as the seed: what the checks below compare with."""
    each = enumerate(zip(prompts(), steerings(engine), strict=True))
    return [engine.generate([t], s, dataclasses.replace(SAMPLING, seed=(n,)))[0] for n, (t, s) in each]


def decoding(engine: HFEngine, alone: Sequence[Reply]) -> float:
    """Replies in one batch, which rows leave when they end, against each alone."""
    together = engine.generate(prompts(), steerings(engine), SAMPLING)
    return max(_apart(a, b) for a, b in zip(together, alone, strict=True))


def caching(engine: HFEngine, alone: Sequence[Reply]) -> float:
    """Replies decoded step by step against one pass over prompt and reply, without a cache."""
    off = 0.0
    for text, steering, made in zip(prompts(), steerings(engine), alone, strict=True):
        asked = engine.renderer.prompt(Example.ask(text).messages)
        whole = [*asked.ids, *made.ids]
        batch = padded([whole], [len(asked.ids)], [asked.head], pad=engine.pad, padding="right").to(engine.device)
        with torch.no_grad(), engine.steer_batch(batch, [steering]):
            scores = engine.model(input_ids=batch.ids, **_told(engine, batch)).logits[0].float()
        answer = torch.tensor(made.ids, dtype=torch.long)
        found = scores[len(asked.ids) - 1 : -1].log_softmax(dim=-1).cpu()
        off = max(off, _off(found.gather(1, answer[:, None])[:, 0].tolist(), list(made.logprobs[: len(answer)])))
    return off


def serving(engine: HFEngine, alone: Sequence[Reply], folder: Path) -> float:
    """Replies of different `max_tokens`, asked of the server's own scheduler at once and one after the other, against alone."""
    from ..engines.hf_serving import Ask, Prompts
    from ..serve.metrics import Metrics
    from ..serve.scheduler import Done, Failed, Job, Scheduler
    from ..serve.settings import Settings

    scheduler, asked = Scheduler(engine, Settings(store=folder), Metrics()), Prompts(engine)
    scheduler.start()
    try:
        made: list[queue.SimpleQueue[Any]] = []
        for n, (text, steering) in enumerate(zip(prompts(), steerings(engine), strict=True)):
            sampling = dataclasses.replace(SAMPLING, max_new_tokens=LIMITS[n], seed=n)
            ask = Ask(asked.chat([Message("user", text)]), steering, sampling)
            scheduler.check(ask)
            made.append(queue.SimpleQueue[Any]())
            scheduler.submit([Job(ask, made[-1].put)])
        replies: list[Reply] = []
        for told in made:
            event = told.get(timeout=60)
            while not isinstance(event, (Done, Failed)):
                event = told.get(timeout=60)
            if isinstance(event, Failed):
                raise RuntimeError(f"the scheduler failed: {event.problem}")
            replies.append(event.reply)
    finally:
        scheduler.stop()  # the model is its thread's until then
    return max(_apart(a, _cut(b, LIMITS[n])) for n, (a, b) in enumerate(zip(replies, alone, strict=True)))


def all_of(make: Callable[..., HFEngine], folder: Path) -> dict[str, float]:
    """Every check; `make` gives an engine with these settings (padding, chunk)."""
    engine = make()
    found = {"scored, padded right": scoring(engine), "scored, padded left": scoring(make(padding="left"))}
    found |= {"captured": reading(engine), "captured, padded left": reading(make(padding="left"))}
    if engine.trial.refusal is None:
        alone = said_alone(engine)
        found |= {"decoded": decoding(engine, alone), "decoded, read in pieces": decoding(make(chunk=3), alone)}
        found |= {"cached": caching(engine, alone), "served": serving(engine, alone, folder)}
    return found


def _told(engine: HFEngine, batch: Batch) -> dict[str, Any]:
    """Places, since a reply may hold the very id that some models take for padding; and that nothing is kept."""
    from ..engines.hf_cache import takes, uncached

    names = takes(engine.model)
    places = {"position_ids": engine.anatomy.places(batch.position)} if "position_ids" in names else {}
    return {**places, **uncached(names)}


def _cut(reply: Reply, limit: int) -> Reply:
    """The reply as it is with at most so many tokens."""
    if len(reply.logprobs) <= limit:  # an end token has one, too
        return reply
    return dataclasses.replace(reply, ids=reply.ids[:limit], finish="length", logprobs=reply.logprobs[:limit])


def _apart(a: Reply, b: Reply) -> float:
    return _off(a.logprobs, b.logprobs) if (a.ids, a.finish) == (b.ids, b.finish) else float("inf")


def _off(a: Sequence[float], b: Sequence[float]) -> float:
    if len(a) != len(b):
        return float("inf")
    return max((abs(x - y) for x, y in zip(a, b, strict=True)), default=0.0)
