"""How a network writes vectors for descriptions: what the frozen model reads, where its states are taken, what comes out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ..contrast import Example, Message
from ..errors import ConfigError, DataError
from ..positions import NOT_TEMPLATE
from ..sites import Site
from ..steering import Prompt
from .frozen import Frozen
from .hypernet import Shape, begun, written

if TYPE_CHECKING:
    from jaxtyping import Float

    from .hypersteer import HyperSteer

CONSTANTS = ("centre", "scale", "unit")  # what input and output are measured in; read off the data, not trained
SHOWN = 60  # characters of a description in a message


class Ask(NamedTuple):
    """What a vector is written for: a description and, where the network reads one, a prompt without its answer."""

    description: str
    prompt: Example | None = None


class Read(NamedTuple):
    """Hidden states of the frozen model for each ask: of what it is given to read, and of the prompt where that is apart."""

    states: list[Float[Tensor, "k d"]]
    context: list[Float[Tensor, "c d"]] | None = None


def described(text: str) -> str:
    """A description fit to be read. Raises `DataError` for an empty one."""
    if not text.strip():
        raise DataError(
            "the description is empty, and a vector is written from it; say what the concept is in a few words (the"
            " contrast's concept, or description=...)."
        )
    return text.strip()


@dataclass(frozen=True, eq=False)
class Writer:
    """Vectors at some sites from a network's tensors, by the settings of a method."""

    settings: HyperSteer
    frozen: Frozen

    def __call__(self, tensors: Mapping[str, Tensor], asks: Sequence[Ask]) -> list[Float[Tensor, "n d"]]:
        """A vector for each ask at each site. Raises `DataError` for what the model can't read."""
        return self.write(tensors, self.read(asks))

    def read(self, asks: Sequence[Ask]) -> Read:
        """What the frozen model makes of each ask."""
        prompts = [ask.prompt for ask in asks if ask.prompt is not None]
        context = [h.cpu() for h in self._states(prompts)] if self.shape.cross else None
        try:
            return Read([h.cpu() for h in self._states([self._text(ask) for ask in asks])], context)
        except DataError as problem:
            longest = max((ask.description for ask in asks), key=len)
            raise DataError(f"a description can't be read (the longest is {longest[:SHOWN]!r}): {problem}") from problem

    def write(self, tensors: Mapping[str, Tensor], read: Read) -> list[Float[Tensor, "n d"]]:
        """v = unit ⊙ head(network((states − centre) / scale)) at each site, differentiable in the tensors; on the CPU."""
        centre, scale, unit = (tensors[name] for name in CONSTANTS)
        states = [(h - centre) / scale for h in read.states]
        context = None if read.context is None else [(h - centre) / scale for h in read.context]
        return list((unit * written(tensors, self.shape, states, context)).split(self._widths, dim=1))

    def begun(self, asks: Sequence[Ask], generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Random parameters, and the constants by what the model makes of these descriptions.

        `centre` and `scale` are mean and standard deviation of a description's mean state, `unit` the root mean square of the
        activations that are edited.
        """
        read = torch.stack([h.mean(dim=0) for h in self.read(asks).states])
        spread = read.std(dim=0, correction=0)
        texts = [self._text(ask) for ask in asks]
        sizes = [
            torch.cat(self.frozen.reads(texts, s, NOT_TEMPLATE)).square().mean().sqrt().cpu() for s in self.frozen.sites
        ]
        constants = {
            "centre": read.mean(dim=0),
            "scale": torch.where(spread > 1e-6 * spread.max().clamp_min(1e-12), spread, torch.ones(())),
            "unit": torch.cat([size.expand(width) for size, width in zip(sizes, self._widths, strict=True)]),
        }
        return begun(self.shape, generator), constants

    def ask(self, description: str, prompt: Example | None) -> Ask:
        """The prompt counts only where it is read."""
        reads = prompt is not None and self.settings.context != "none"
        return Ask(description, prompt.without_answer() if reads and prompt is not None else None)

    @property
    def shape(self) -> Shape:
        """The network's sizes. Raises `ConfigError` where the heads don't divide its width."""
        made, inputs = self.settings, self.frozen.engine.width(self._site)
        width = made.width or inputs
        if made.layers and width % made.heads:
            raise ConfigError(
                f"the network is {width} wide, which {made.heads} heads don't divide; set width or heads."
            )
        return Shape(inputs, sum(self._widths), made.layers, made.heads, width, made.context == "cross")

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The shapes of everything that it writes by, constants included."""
        shape = self.shape
        return {**shape.parameters(), "centre": (shape.inputs,), "scale": (shape.inputs,), "unit": (shape.outputs,)}

    @property
    def _widths(self) -> list[int]:
        return [self.frozen.engine.width(site) for site in self.frozen.sites]

    @property
    def _site(self) -> Site:
        """Where it reads: the output of the first block that is edited, unless told otherwise."""
        if self.settings.reads is not None:
            return Site.parse(self.settings.reads)
        layers = [s.layer for s in self.frozen.sites if s.layer is not None]
        return Site(layers[0] if layers else int(self.frozen.engine.depth * self.settings.up))

    def _text(self, ask: Ask) -> Example:
        """What the model is given to read: the description, before the prompt's text where both are read as one."""
        text = self.settings.wording.replace("{}", ask.description)
        if self.settings.context == "prompt" and ask.prompt is not None:
            return replace(ask.prompt, messages=Prompt(text, placement="prefix").apply(ask.prompt.messages))
        return Example((Message("user", text),))

    def _states(self, examples: Sequence[Example]) -> list[Float[Tensor, "k d"]]:
        with torch.no_grad():
            return self.frozen.reads(examples, self._site, NOT_TEMPLATE)
