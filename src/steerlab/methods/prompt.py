"""The instruction itself: the arm that steering has to be compared with.

The prompt is put into the conversation by the engine; nothing inside the model is touched. Strength is −1, 0 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import DataError
from ..steering import Placement, Prompt, Steering
from .base import Method, assemble

if TYPE_CHECKING:
    from ..contrast import Contrast
    from ..engines.base import Trainable


@dataclass(frozen=True)
class PromptArm(Method):
    """Ask for the concept (+1), or ask to leave it out (−1). `positive` and `negative` replace the wording.

    Raises `DataError` where the contrast has no concept to ask for and no wording is given.
    """

    positive: str | None = None
    negative: str | None = None
    placement: Placement = "suffix"

    def fit(self, engine: Trainable, contrast: Contrast) -> Steering:
        if self.positive is None and not contrast.concept:
            raise DataError(
                "the prompt arm needs something to ask for: the contrast has no concept. Name it (concept=...), or give the"
                " wording (positive=...)."
            )
        positive = self.positive or f"Bring {contrast.concept} into your answer."
        negative = self.negative or (f"Keep {contrast.concept} out of your answer." if self.positive is None else None)
        return assemble(self, engine, contrast, prompt=Prompt(positive, negative, self.placement))
