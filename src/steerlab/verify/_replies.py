"""What targets that only talk have in common: which replies are asked for, and how far apart two of them are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from ..engines.hf import HFEngine
from ..steering import Steering
from . import _plain
from .base import Probe, apart, scored


class Said(NamedTuple):
    """A reply: its tokens and their log-probabilities."""

    ids: tuple[int, ...]
    logprobs: Tensor


def mixture(steering: Steering, probes: Sequence[Probe]) -> list[tuple[Probe, float | None]]:
    """Each probe at several strengths, at 0 and untouched (None)."""
    low, high = steering.domain
    strengths = [s for s in (1.0, 0.5, -1.0) if low <= s <= high and (steering.prompt is None or s != 0.5)]
    count = len(strengths)
    columns = [[(p, strengths[(n + k) % count]) for n, p in enumerate(probes)] for k in (0, 1)]
    bare, off = [(p, None) for p in probes], [(p, 0.0) for p in probes]
    return [*columns[0], *bare, *columns[1], *off]  # neighbours are of unlike lengths, so that something is padded


def as_said(probe: Probe, said: Said) -> Probe:
    """The prompt with what was said after it."""
    return probe._replace(ids=(*probe.ids[: probe.prompt_length], *said.ids))


def meant(engine: HFEngine, probe: Probe, steering: Steering | None, said: Said) -> Tensor:
    """The reference's log-probabilities of a reply's tokens."""
    whole = as_said(probe, said)
    return scored(_plain.logits(engine, whole, steering), whole)


def differ(got: Sequence[Said], wanted: Sequence[Said]) -> float:
    """The largest difference up to where two replies part; infinite where they part by more than a near-tie."""
    most = 0.0
    for a, b in zip(got, wanted, strict=True):
        same = next((n for n, (x, y) in enumerate(zip(a.ids, b.ids)) if x != y), min(len(a.ids), len(b.ids)))
        until = min(
            same + 1, len(a.ids), len(b.ids)
        )  # where two tokens were as likely, both log-probabilities are alike
        most = max(most, apart([a.logprobs[:until]], [b.logprobs[:until]]))
    return most


def effect(
    engine: HFEngine, asked: Sequence[Probe], rows: Sequence[tuple[Probe, float | None]], said: Sequence[Said],
    wanted: Sequence[Tensor],
) -> float:  # fmt: skip
    """How far the steering moves a log-probability at most."""
    steered = [n for n, (_, s) in enumerate(rows) if s]
    return apart([wanted[n] for n in steered], [meant(engine, asked[n], None, said[n]) for n in steered])
