"""How strongly, now: `(read-outs, tokens, state) -> (strength [b, t, 1 or r], state)`.

A control names the sites that it reads, all at or before the first one it acts on. Its state is explicit and leads with
the row axis, so that an engine can drop finished rows. Where it gives exactly 0, the engine leaves the activation
bit-identical: a closed gate is inert.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from .errors import EditError
from .sites import Site

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

    from .positions import Positions

State = dict[str, Tensor]


class Tokens(NamedTuple):
    """One chunk of a batch: ids, each row's position of its real tokens (−1 for padding), each row's prompt length."""

    ids: Int[Tensor, "b t"]
    position: Int[Tensor, "b t"]
    prompt_length: Int[Tensor, " b"]


@dataclass(frozen=True, eq=False)
class Control(ABC):
    """Gives each token its strength. Subclasses are frozen dataclasses of tensors, sites and plain values."""

    @property
    def reads(self) -> tuple[Site, ...]:
        """The sites whose activations `strength` gets, before any edit of this steering's there."""
        return ()

    def start(self, rows: int, device: torch.device) -> State:
        """The state before the first token."""
        return {}

    @abstractmethod
    def strength(
        self, read: Mapping[Site, Float[Tensor, "b t d"]], tokens: Tokens, state: State
    ) -> tuple[Float[Tensor, "b t r"], State]:
        """The strength of each token of this chunk (or `[1, 1, 1]` where all have the same), and the next state."""

    @abstractmethod
    def scaled(self, k: float) -> Self:
        """The control that gives k times the strength."""

    @property
    @abstractmethod
    def most(self) -> tuple[float, float]:
        """The least and the greatest strength it can give."""

    def unit(self) -> tuple[tuple[Hashable, ...], Self, float]:
        """Itself as a control of strength 1 and a factor, and what it shares with those that differ in the factor alone.

        Rows of such controls run as one. The default shares nothing.
        """
        return (id(self),), self, 1.0

    def problem(self, positions: Positions) -> str | None:
        """Why it can't act at these positions, in words, or None."""
        return None

    @property
    def kind(self) -> str:
        """The name under which it is saved."""
        return type(self).__name__

    @classmethod
    def random(cls, site: Site, width: int, generator: torch.Generator) -> Control:
        """A valid instance that reads `site`, drawn at random, so that the laws can be tested on every kind that exists."""
        raise EditError(f"{cls.__name__} has no random(site, width, generator), which the laws of controls need.")

    def to(self, device: torch.device | str) -> Self:
        """The same control with its tensors on another device."""
        moved = {
            f.name: value.to(device)
            for f in dataclasses.fields(self)
            if isinstance(value := getattr(self, f.name), Tensor) and value.device != torch.device(device)
        }
        return dataclasses.replace(self, **moved) if moved else self  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True, eq=False)
class Constant(Control):
    """The same strength at every token."""

    value: float = 1.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise EditError(f"a strength is {self.value}; expected a finite number (0 = untouched, 1 = as fitted).")

    def strength(self, read: Mapping[Site, Tensor], tokens: Tokens, state: State) -> tuple[Tensor, State]:
        return torch.full((1, 1, 1), self.value, device=tokens.ids.device), state

    def scaled(self, k: float) -> Constant:
        return Constant(self.value * k)

    @classmethod
    def random(cls, site: Site, width: int, generator: torch.Generator) -> Constant:
        return cls(float(torch.rand((), generator=generator)))

    @property
    def most(self) -> tuple[float, float]:
        return (self.value, self.value)


class Decision(Control):
    """What looks at one site and decides between exactly 0 and `value`, or in between.

    By itself it decides at each token. `held=True` decides once, at the last prompt token, and keeps to it: it can
    only act from that token on (positions such as `DECODING`), since earlier ones have passed by then. `ahead=True` also
    decides at the last prompt token, but of a pass of the untouched prompt before everything else: it can then act at
    every token and read any site, for one more pass of the prompt.
    """

    held_needs: ClassVar[str] = "positions that start at the last prompt token, such as DECODING"
    site: Site
    value: float
    held: bool
    ahead: bool

    @abstractmethod
    def level(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """How much it wants of the strength at these activations, in [0, 1]."""

    def _check(self, name: str) -> None:
        if self.held and self.ahead:
            raise EditError(f"a {name} is held or decides ahead; give one of held=True and ahead=True.")
        if not math.isfinite(self.value):
            raise EditError(f"a {name} has the strength {self.value}; it must be finite.")

    @property
    def reads(self) -> tuple[Site, ...]:
        return (self.site,)

    def start(self, rows: int, device: torch.device) -> State:
        return {"level": torch.zeros(rows, device=device)} if self.held else {}

    def strength(self, read: Mapping[Site, Tensor], tokens: Tokens, state: State) -> tuple[Tensor, State]:
        if self.ahead:
            raise EditError(
                "this control decides ahead, and nobody has decided it yet; this is a mistake in the engine."
            )
        h = read[self.site]
        if self.held:
            deciding = tokens.position == tokens.prompt_length[:, None] - 1
            at = deciding.long().argmax(dim=1)
            level = self.level(h[torch.arange(len(h), device=h.device), at])
            state = {"level": torch.where(deciding.any(dim=1), level, state["level"])}
            level = state["level"][:, None].expand_as(tokens.ids)
        else:
            level = self.level(h)
        return (level * self.value)[..., None], state

    def unit(self) -> tuple[tuple[Hashable, ...], Self, float]:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "value"}
        alike = (type(self), *(id(v) if isinstance(v, Tensor) else v for v in values.values()))
        return alike, dataclasses.replace(self, value=1.0), self.value

    def decided(self, h: Float[Tensor, " d"]) -> Constant:
        """What it comes to ahead, at the last prompt token's activation."""
        return Constant(float(self.level(h)) * self.value)

    @property
    def most(self) -> tuple[float, float]:
        return (min(0.0, self.value), max(0.0, self.value))

    def problem(self, positions: Positions) -> str | None:
        if self.held and not positions.decides_at_last_prompt:
            name = self.kind.lower()
            return f"a held {name} decides at the last prompt token, so it needs {self.held_needs}; got {positions}"
        return None


@dataclass(frozen=True, eq=False)
class Gate(Decision):
    """A linear probe decides between `value` and exactly 0: open where h·direction > threshold at the site it reads."""

    site: Site
    direction: Float[Tensor, " d"]
    threshold: float
    value: float = 1.0
    held: bool = False
    ahead: bool = field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.direction.ndim != 1 or not bool(torch.isfinite(self.direction).all()):
            raise EditError("a gate's direction must be a finite vector [d].")
        self._check("gate")
        if not math.isfinite(self.threshold):
            raise EditError(f"a gate has the threshold {self.threshold}; it must be finite.")
        object.__setattr__(self, "direction", self.direction.to(torch.float32))

    def level(self, h: Tensor) -> Tensor:
        return self.opens(h).float()

    def opens(self, h: Float[Tensor, "*n d"]) -> Bool[Tensor, "*n"]:
        """Whether it is open at these activations."""
        return (h.float() @ self.direction) > self.threshold

    def scaled(self, k: float) -> Gate:
        return dataclasses.replace(self, value=self.value * k)

    @classmethod
    def random(cls, site: Site, width: int, generator: torch.Generator) -> Gate:
        held = bool(torch.randint(2, (1,), generator=generator))
        return cls(site, torch.randn(width, generator=generator), 0.0, 0.7, held=held)


@dataclass(frozen=True, eq=False)
class Network(Decision):
    """A small network says how strongly each of several interventions acts (Guiding Giants, arXiv 2505.20309).

    o = relu(h·hiddenᵀ + bias)·outᵀ + offset at the site it reads. Output 0 is whether to act at all, each other one
    belongs to one intervention: that of the number `output` acts at value·max(0, 2σ(o₀) − 1)·σ(o_output), which is
    exactly 0 where acting is the less likely, and never turns round. (The published controller multiplies by o₀ itself,
    which is negative on prompts to be left alone.) Interventions of one network hold the same tensors; a file has them once.
    """

    site: Site
    hidden: Float[Tensor, "k d"] = field(metadata={"shared": True})
    bias: Float[Tensor, " k"] = field(metadata={"shared": True})
    out: Float[Tensor, "m k"] = field(metadata={"shared": True})
    offset: Float[Tensor, " m"] = field(metadata={"shared": True})
    output: int = 1
    value: float = 1.0
    held: bool = True
    ahead: bool = False

    def __post_init__(self) -> None:
        self._check("network")
        shapes = [tuple(t.shape) for t in (self.hidden, self.bias, self.out, self.offset)]
        sizes = (*shapes[0], shapes[2][0]) if len(shapes[0]) == len(shapes[2]) == 2 else (0, 0, 0)
        k, d, m = sizes
        if shapes != [(k, d), (k,), (m, k), (m,)]:
            raise EditError(
                f"a network has hidden, bias, out and offset of the shapes {shapes}; expected [k, d], [k], [m, k], [m]."
            )
        if not 1 <= self.output < m:
            raise EditError(
                f"a network has {m} outputs and this intervention takes number {self.output}; expected 1 to {m - 1} (0 says"
                " whether to act at all)."
            )
        for name in ("hidden", "bias", "out", "offset"):
            value = getattr(self, name).to(torch.float32)
            if not bool(torch.isfinite(value).all()):
                raise EditError(f"a network's {name} holds NaN or infinite values.")
            object.__setattr__(self, name, value)

    def outputs(self, h: Float[Tensor, "*n d"]) -> Float[Tensor, "*n m"]:
        """All its outputs, before any squashing."""
        return torch.relu(h.float() @ self.hidden.T + self.bias) @ self.out.T + self.offset

    def level(self, h: Tensor) -> Tensor:
        return levels(self.outputs(h))[..., self.output - 1]

    def scaled(self, k: float) -> Network:
        return dataclasses.replace(self, value=self.value * k)

    @classmethod
    def random(cls, site: Site, width: int, generator: torch.Generator) -> Network:
        sizes = ((6, width), (6,), (3, 6), (3,))
        made = [torch.randn(size, generator=generator) for size in sizes]
        held, output = (int(torch.randint(2, (1,), generator=generator)) for _ in range(2))
        return cls(site, *made, output=1 + output, value=0.7, held=bool(held))


def levels(outputs: Float[Tensor, "*n m"]) -> Float[Tensor, "*n m-1"]:
    """How strongly each intervention acts, in [0, 1], from a network's outputs."""
    act = (2 * torch.sigmoid(outputs[..., :1]) - 1).clamp_min(0)
    return act * torch.sigmoid(outputs[..., 1:])


def kinds() -> dict[str, type[Control]]:
    """Every kind of control that exists, by the name under which it is saved."""
    found: dict[str, type[Control]] = {}
    todo: list[type[Control]] = [Control]
    while todo:
        for sub in todo.pop().__subclasses__():
            todo.append(sub)
            if not getattr(sub, "__abstractmethods__", None):
                found[sub.__name__] = sub
    return found
