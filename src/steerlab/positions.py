"""When: the token positions that an intervention touches.

Plain data over two phases, the prompt and what is generated after it. It serialises, hashes and translates to every
engine, and it never counts chunks: the same positions are meant whether a prompt is read at once, in pieces or from a
cache, padded left or right. Padding belongs to neither phase and is never steered.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from .errors import DataError

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

Anchor = Literal["start", "body"]


class Window(NamedTuple):
    """Half-open: positions `start` up to but without `stop` (None: to the phase's end).

    In the prompt, negative bounds count from its end; others count from the first real token (`anchor="start"`) or from
    the first one after the chat template's head (`anchor="body"`), which a body window never touches. In the generated
    part they count from the first generated token.
    """

    start: int
    stop: int | None = None
    anchor: Anchor = "start"


@dataclass(frozen=True, slots=True)
class Positions:
    """A union of windows in the prompt and one in the generated part; overlaps count once, an empty union is nothing.

    The template's head (BOS and the first role header, the tokens before the first message's text) is found for each
    conversation by rendering it with two different one-letter first messages and counting equal ids.
    """

    prompt: tuple[Window, ...] = ()
    generated: tuple[Window, ...] = ()

    def __post_init__(self) -> None:
        for name in ("prompt", "generated"):
            windows = tuple(Window(*w) for w in getattr(self, name))
            for start, stop, anchor in windows:
                if anchor not in ("start", "body"):
                    raise DataError(f"a window is anchored at {anchor!r}; expected 'start' or 'body'.")
                if name == "generated" and (start < 0 or (stop is not None and stop < 0) or anchor != "start"):
                    raise DataError(
                        f"a window of generated tokens is {(start, stop, anchor)}; it counts from the first generated"
                        " token (0), since the end isn't known while generating."
                    )
                if stop is not None and (start < 0) == (stop < 0) and stop <= start:
                    raise DataError(f"the window {(start, stop)} is empty; expected start < stop.")
            object.__setattr__(self, name, tuple(dict.fromkeys(windows)))

    def __or__(self, other: Positions) -> Positions:
        return Positions(self.prompt + other.prompt, self.generated + other.generated)

    @property
    def decides_at_last_prompt(self) -> bool:
        """Whether nothing before the last prompt token is touched, so that a gate can decide there and hold."""
        return all(w.start == -1 for w in self.prompt)

    @property
    def unphased(self) -> bool:
        """Whether prompt and generated tokens are touched by one rule: all of them, or all after the template's head."""
        fixed = all(w.start >= 0 and (w.stop is None or w.stop >= 0) for w in self.prompt)
        return fixed and any(w[:2] == (0, None) for w in self.prompt) and Window(0) in self.generated

    @property
    def after_head(self) -> bool:
        """Whether what they touch depends on where the template's head ends."""
        return any(w.anchor == "body" for w in self.prompt)

    def mask(
        self,
        position: Int[Tensor, "b t"],
        prompt_length: Int[Tensor, " b"],
        head: Int[Tensor, " b"],
    ) -> Bool[Tensor, "b t"]:
        """Which tokens of a chunk are touched.

        `position` counts each row's real tokens from 0 (−1 for padding), whatever chunk they arrive in;
        `prompt_length` and `head` are each row's numbers of prompt tokens and of template tokens before the first
        message.
        """
        n, head = prompt_length[:, None], head[:, None]
        in_prompt = position < n
        touched = position < -1  # all False, on the right device
        for start, stop, anchor in self.prompt:
            origin = head if anchor == "body" else 0
            first = n + start if start < 0 else origin + start
            within = (position >= first) & (position >= origin)
            if stop is not None:
                within &= position < (n + stop if stop < 0 else origin + stop)
            touched |= in_prompt & within
        for start, stop, _ in self.generated:
            within = position >= n + start
            if stop is not None:
                within &= position < n + stop
            touched |= within & (position >= n)
        return touched

    def generated_from(self, k: int) -> bool | None:
        """Whether every generated token from the k-th on (0 is the first) is touched; None where some are and some aren't."""
        if any(start <= k and stop is None for start, stop, _ in self.generated):
            return True
        return None if any(stop is None or stop > k for _, stop, _ in self.generated) else False

    def to_json(self) -> dict[str, Any]:
        """The windows as lists."""
        return {"prompt": [list(w) for w in self.prompt], "generated": [[w.start, w.stop] for w in self.generated]}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self:
        """The positions that `to_json` wrote."""
        if set(row) != {"prompt", "generated"}:
            raise DataError(f"positions have the fields {sorted(row)}; expected 'prompt' and 'generated'.")
        return cls(*(tuple(_window(w) for w in row[name]) for name in ("prompt", "generated")))

    @classmethod
    def parse(cls, text: str) -> Positions:
        """Positions by name (`not_template`, `all`, `prompt`, `generated`, `decoding`, `last_prompt`), or `f3+l2`.

        `fN+lM` is the field's shorthand for the first N and the last M prompt tokens after the template's head, `pN+sM`
        for those of the whole prompt, BOS included.
        """
        import re

        name = text.strip().lower().replace("-", "_")
        if name in NAMED:
            return NAMED[name]
        union = cls()
        for piece in name.split("+"):
            found = re.fullmatch(r"([flps])([1-9]\d*)", piece)
            if not found:
                from .errors import nearest

                raise DataError(
                    f"positions are {text!r}; expected a name or a form like 'f3+l2'. {nearest(name, NAMED)}"
                )
            count = int(found[2])
            ways = {
                "f": first(count),
                "l": last(count),
                "p": Positions((Window(0, count),)),
                "s": Positions((Window(-count),)),
            }
            union |= ways[found[1]]
        return union

    def __str__(self) -> str:
        for name, positions in NAMED.items():
            if self == positions:
                return name
        parts = [
            f"prompt[{_bounds(w)}]" + (" after the template's head" if w.anchor == "body" else "") for w in self.prompt
        ]
        parts += [f"generated[{_bounds(w)}]" for w in self.generated]
        return " and ".join(parts) or "nowhere"


def _bounds(window: Window) -> str:
    return f"{window.start}:{'' if window.stop is None else window.stop}"


def first(n: int) -> Positions:
    """The first `n` prompt tokens after the template's head."""
    return Positions(prompt=(Window(0, n, "body"),))


def last(n: int) -> Positions:
    """The last `n` prompt tokens, never the template's head."""
    return Positions(prompt=(Window(-n, None, "body"),))


ALL = Positions((Window(0),), (Window(0),))
NOT_TEMPLATE = Positions((Window(0, None, "body"),), (Window(0),))
PROMPT = Positions((Window(0, None, "body"),))
GENERATED = Positions((), (Window(0),))
LAST_PROMPT = Positions((Window(-1),))
DECODING = Positions((Window(-1),), (Window(0),))
NAMED = {
    "not_template": NOT_TEMPLATE,
    "all": ALL,
    "prompt": PROMPT,
    "generated": GENERATED,
    "decoding": DECODING,
    "last_prompt": LAST_PROMPT,
}


def _window(row: list[Any]) -> Window:
    found = Window(*row)
    bounds: tuple[Any, Any] = found[:2]
    if not isinstance(bounds[0], int) or not isinstance(bounds[1], (int, type(None))):
        raise DataError(f"a window goes from {bounds[0]!r} to {bounds[1]!r}; expected whole numbers.")
    return found
