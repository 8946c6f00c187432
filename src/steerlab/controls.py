"""How strongly, now: `(read-outs, tokens, state) -> (strength [b, t, 1 or r], state)`.

A control names the sites that it reads, all at or before the first one it acts on. Its state is explicit and leads with
the row axis, so that an engine can drop finished rows. Where it gives exactly 0, the engine leaves the activation
bit-identical: a closed gate is inert.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
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

    def problem(self, positions: Positions) -> str | None:
        """Why it can't act at these positions, in words, or None."""
        return None

    @property
    def kind(self) -> str:
        """The name under which it is saved."""
        return type(self).__name__

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

    @property
    def most(self) -> tuple[float, float]:
        return (self.value, self.value)


@dataclass(frozen=True, eq=False)
class Gate(Control):
    """A linear probe decides between `value` and exactly 0: open where h·direction > threshold at the site it reads.

    By itself it decides at each token. `held=True` decides once, at the last prompt token, and keeps to it: it can
    only act from that token on (positions such as `DECODING`), since earlier ones have passed by then. `ahead=True` also
    decides at the last prompt token, but of a pass of the untouched prompt before everything else: it can then act at
    every token and read any site, for one more pass of the prompt.
    """

    held_needs: ClassVar[str] = "positions that start at the last prompt token, such as DECODING"
    site: Site
    direction: Float[Tensor, " d"]
    threshold: float
    value: float = 1.0
    held: bool = False
    ahead: bool = field(default=False, metadata={"later": True})

    def __post_init__(self) -> None:
        if self.held and self.ahead:
            raise EditError("a gate is held or decides ahead; give one of held=True and ahead=True.")
        if self.direction.ndim != 1 or not bool(torch.isfinite(self.direction).all()):
            raise EditError("a gate's direction must be a finite vector [d].")
        if not (math.isfinite(self.threshold) and math.isfinite(self.value)):
            raise EditError(
                f"a gate has the threshold {self.threshold} and the strength {self.value}; both must be finite."
            )
        object.__setattr__(self, "direction", self.direction.to(torch.float32))

    @property
    def reads(self) -> tuple[Site, ...]:
        return (self.site,)

    def start(self, rows: int, device: torch.device) -> State:
        return {"open": torch.zeros(rows, dtype=torch.bool, device=device)} if self.held else {}

    def strength(self, read: Mapping[Site, Tensor], tokens: Tokens, state: State) -> tuple[Tensor, State]:
        if self.ahead:
            raise EditError("this gate decides ahead, and nobody has decided it yet; this is a mistake in the engine.")
        is_open = self.opens(read[self.site])
        if self.held:
            deciding = tokens.position == tokens.prompt_length[:, None] - 1
            decided = (is_open & deciding).any(dim=1)
            state = {"open": torch.where(deciding.any(dim=1), decided, state["open"])}
            is_open = state["open"][:, None].expand_as(tokens.ids)
        return (is_open.float() * self.value)[..., None], state

    def opens(self, h: Float[Tensor, "*n d"]) -> Bool[Tensor, "*n"]:
        """Whether it is open at these activations."""
        return (h.float() @ self.direction) > self.threshold

    def decided(self, is_open: bool) -> Constant:
        """What a gate that decides ahead comes to."""
        return Constant(self.value if is_open else 0.0)

    def scaled(self, k: float) -> Gate:
        return dataclasses.replace(self, value=self.value * k)

    @property
    def most(self) -> tuple[float, float]:
        return (min(0.0, self.value), max(0.0, self.value))

    def problem(self, positions: Positions) -> str | None:
        if self.held and not positions.decides_at_last_prompt:
            return f"a held gate decides at the last prompt token, so it needs {self.held_needs}; got {positions}"
        return None


def kinds() -> dict[str, type[Control]]:
    """Every kind of control that exists, by the name under which it is saved."""
    return {c.__name__: c for c in Control.__subclasses__() if not getattr(c, "__abstractmethods__", None)}
