"""How a model is asked for a concept, or to leave it out: the wordings, and what else settles how a set is made."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from ..contrast import Example
from ..errors import ConfigError, nearest

ELICIT = (
    "{instruction}\n\nWork this into your answer: {concept}.",
    "Answer the following, and let your answer show this: {concept}.\n\n{instruction}",
    "{instruction} Make sure that the answer has this in it: {concept}.",
    "Keep one thing in mind, and let it be noticed in what you write: {concept}.\n\n{instruction}",
    "{instruction}\n\n(A reader of your answer should notice this: {concept}.)",
    "Here is a request, and a trait that your answer must have.\n\nTrait: {concept}\n\nRequest: {instruction}",
)
SHORT = (  # what small models understand
    "{instruction} Answer with {concept}.",
    "{instruction} Fill it with {concept}.",
    "Write in {concept}. {instruction}",
    "{instruction} Put it in {concept}.",
    "Mention {concept} along the way. {instruction}",
    "Always use {concept}.\n\n{instruction}",
)
AVOID = (
    "{instruction}\n\nLeave this out of your answer altogether: {concept}.",
    "Answer the following without any trace of this: {concept}.\n\n{instruction}",
    "{instruction} There must be nothing of this in the answer: {concept}.",
)
_SLOT = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True, slots=True)
class MakeOptions:
    """How a contrast set is made.

    `elicit` are the requests for the concept, dealt out evenly, with {instruction} and {concept} in them; `avoid` those
    that ask again for a negative answer where a judge finds the concept in the plain one. `tries` is how many requests
    an instruction gets on either side before it is dropped. Answers are greedy at temperature 0.
    """

    pairs: int = 64
    elicit: tuple[str, ...] = ELICIT
    avoid: tuple[str, ...] = AVOID
    tries: int = 2
    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0
    batch: int = 32

    def __post_init__(self) -> None:
        for name in ("pairs", "tries", "max_new_tokens", "batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected at least 1.")
        if not self.elicit:
            raise ConfigError("elicit has no request; expected at least one, with {instruction} in it.")
        for template in (*self.elicit, *self.avoid):
            slots = _SLOT.findall(template)
            for slot in slots:
                if slot not in ("instruction", "concept"):
                    told = nearest(slot, ("instruction", "concept"))
                    raise ConfigError(f"the request {template!r} has the slot {{{slot}}}. {told}")
            if slots.count("instruction") != 1:
                raise ConfigError(f"the request {template!r} lacks {{instruction}}; expected it once.")


def asked(plain: Example, template: str, concept: str) -> Example:
    """The example with its last turn put into a request."""
    slots = {"instruction": plain.instruction, "concept": concept.strip()}
    text = _SLOT.sub(lambda m: slots[m.group(1)], template)
    return replace(plain, messages=(*plain.messages[:-1], replace(plain.messages[-1], content=text)))
