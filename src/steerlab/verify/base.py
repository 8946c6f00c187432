"""What a receipt is, and what an engine must show for one."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..contrast import Example
from ..engines.hf import HFEngine
from ..engines.hf_cache import takes, uncached
from ..errors import DataError, UnsupportedError
from ..steering import Steering

if TYPE_CHECKING:
    from jaxtyping import Float

LOOSE = 0.1  # nats by which log-probabilities of 16-bit models may differ between two orders of the same sums


@dataclass(frozen=True, slots=True)
class Options:
    """How it is checked. `tolerance` in nats (None: the engine's own).

    `llamacpp` is a Python that has llama-cpp-python, `vllm` one that has vLLM, which runs eager or `compiled`. A server is
    asked at `url` with `key`; without a url one is started, on `server_engine` (hf or vllm).
    """

    tolerance: float | None = None
    llamacpp: str | None = None
    tokens: int = 12
    vllm: str | None = None
    compiled: bool = False
    url: str | None = None
    key: str | None = field(default=None, repr=False)
    server_engine: str = "hf"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was checked: the largest difference found and the most allowed; `passed` None where it doesn't apply."""

    name: str
    passed: bool | None
    told: str
    value: float | None = None
    most: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        value = self.value if self.value is None or math.isfinite(self.value) else str(self.value)
        return {"name": self.name, "passed": self.passed, "value": value, "most": self.most, "told": self.told}


@dataclass(frozen=True, slots=True)
class Receipt:
    """What one engine showed. It passes where every check did and at least one applied."""

    engine: str
    checks: tuple[Check, ...]
    refused: str | None = None
    broke: str | None = None

    @property
    def passed(self) -> bool:
        """Whether the engine does what the steering's definition says."""
        held = [c.passed for c in self.checks if c.passed is not None]
        return self.refused is None and self.broke is None and bool(held) and all(held)

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        checks = [c.to_json() for c in self.checks]
        return {
            "engine": self.engine,
            "passed": self.passed,
            "refused": self.refused,
            "broke": self.broke,
            "checks": checks,
        }


class Probe(NamedTuple):
    """A prompt with an answer, in words and as token ids."""

    example: Example
    ids: tuple[int, ...]
    prompt_length: int
    head: int


class Target(ABC):
    """An engine, or an export with what runs it."""

    what: ClassVar[str] = ""
    tolerance: ClassVar[float] = 1e-5  # in float32

    @abstractmethod
    def check(self, engine: HFEngine, steering: Steering, probes: Sequence[Probe], options: Options) -> list[Check]:
        """The checks. Raises `UnsupportedError` where the steering is refused."""

    def most(self, engine: HFEngine, probes: Sequence[Probe], options: Options) -> tuple[float, Check]:
        """The largest difference allowed, in nats, and the line that tells of the bare model's own rounding.

        The engine's tolerance, or three times as far as the bare model's own log-probabilities move between one padded batch
        and single rows (with none of this package's hooks), where that is more: kernels round by the shape of a batch.
        """
        own = rounding(engine, probes)
        usual = self.tolerance if engine.model.dtype in (torch.float32, torch.float64) else LOOSE
        line = Check("rounding", None, "the bare model's own, between a padded batch and single rows", own)
        most = max(usual, min(3 * own, 100 * usual))  # a model that is off by more than that is no measure
        return (most if options.tolerance is None else options.tolerance), line


def probes_of(engine: HFEngine, given: Sequence[Example] | None, texts: Sequence[str], answer: str) -> list[Probe]:
    """What the checks run on. Raises `DataError` for fewer than two prompts, or prompts of one length."""
    examples = list(given) if given else [Example.ask(text) for text in texts]
    made: list[Probe] = []
    for example in examples:
        example = example if example.answer else replace(example, answer=answer)
        batch = engine.batch([example])
        ids = tuple(batch.ids[0].tolist())
        made.append(Probe(example, ids, int(batch.prompt_length[0]), int(batch.head[0])))
    if len({len(p.ids) for p in made}) < 2:
        raise DataError(
            "the prompts are all of one length, so that nothing is padded; give at least two of unlike lengths."
        )
    return made


def with_prompt(engine: HFEngine, probe: Probe, steering: Steering | None) -> Probe:
    """The same probe with the text that a steering's prompt puts into the conversation."""
    if steering is None or steering.prompt is None or not steering.prompt.strength:
        return probe
    example = replace(probe.example, messages=steering.prompt.apply(probe.example.messages))
    batch = engine.batch([example])
    return Probe(example, tuple(batch.ids[0].tolist()), int(batch.prompt_length[0]), int(batch.head[0]))


def scored(logits: Float[Tensor, "t v"], probe: Probe) -> Float[Tensor, " n"]:
    """The log-probability of each answer token, of logits at all tokens of a row."""
    at = torch.arange(probe.prompt_length - 1, len(probe.ids) - 1)
    chosen = torch.tensor(probe.ids[probe.prompt_length :])
    return torch.log_softmax(logits.double(), dim=-1)[at, chosen]


def rounding(engine: HFEngine, probes: Sequence[Probe]) -> float:
    """How far the bare model's log-probabilities in one padded batch, each row twice, are from those of single rows."""
    rows, width = [p for p in probes for _ in range(2)], max(len(p.ids) for p in probes)
    ids = torch.tensor([[*p.ids, *[p.ids[0]] * (width - len(p.ids))] for p in rows], device=engine.device)
    real = torch.tensor([[1] * len(p.ids) + [0] * (width - len(p.ids)) for p in rows], device=engine.device)
    nothing_kept = uncached(takes(engine.model))
    with torch.no_grad():
        together = engine.model(input_ids=ids, attention_mask=real, **nothing_kept).logits.float().cpu()
        alone = [
            engine.model(input_ids=ids[n : n + 1, : len(p.ids)], **nothing_kept).logits[0].float().cpu()
            for n, p in enumerate(rows)
        ]
    return apart([scored(t[: len(p.ids)], p) for t, p in zip(together, rows, strict=True)],
                 [scored(a, p) for a, p in zip(alone, rows, strict=True)])  # fmt: skip


def apart(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest difference between tensors of like shapes; infinite where one isn't finite or shapes differ."""
    most = 0.0
    for a, b in zip(got, wanted, strict=True):
        if a.shape != b.shape or not bool(torch.isfinite(a).all()):
            return float("inf")
        most = max(most, float((a.double() - b.double()).abs().max())) if a.numel() else most
    return most


def within(name: str, told: str, value: float, most: float) -> Check:
    """A check that passes where a difference is small enough."""
    return Check(name, value <= most, told, value, most)


def interpreter(package: str, module: str, given: str | None, variable: str, remedy: str) -> str:
    """A Python that has a package: the one given, or that a variable names, or this one. Raises `UnsupportedError`."""
    named = given or os.environ.get(variable)
    if named is None and importlib.util.find_spec(module) is not None:
        return sys.executable
    if named is None or not Path(named).is_file():
        what = "isn't installed here" if named is None else f"was looked for at {named}, where there is no file"
        raise UnsupportedError(f"{package} {what}; {remedy}")
    return named
