"""What a published factor is as a strength: strength 1 is a fitted steering's own size, and papers count in other units.

AxBench (https://arxiv.org/abs/2501.17148, section 4) adds factor · max_act · v, v of unit length and max_act the largest latent
of the concept's texts along it, 50 where none is above 0. Trained vectors are added factor times, as they were in training. CDAS
(https://arxiv.org/abs/2602.05234) sets the coordinate to factor times a pole (its multiplier), whatever the other pole is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast, get_args

from ..bench.axbench.latents import Reading, latents, reading
from ..edits import Clamp
from ..errors import ConfigError
from ..methods.reft_r1 import WITHOUT_LATENT
from ..methods.vectors import TrainedVector

if TYPE_CHECKING:
    from ..contrast import Contrast
    from ..engines.base import Trainable
    from ..engines.hf import HFEngine
    from ..methods.base import Method
    from ..steering import Steering

Scale = Literal["strength", "trained", "latent", "pole"]
SCALES: tuple[Scale, ...] = get_args(Scale)
MOST = 512  # tokens of a text that are read


def strength_of(
    factor: float, scale: str, method: Method, steering: Steering, engine: Trainable, contrast: Contrast
) -> float:
    """The strength of a steering at which it does what the paper does at this factor.

    `pole` is CDAS's multiplier of a pole's own coordinate (a negative factor: of the negative pole), which is no multiple of a
    strength; the other scales are (`per_factor`). Raises `ConfigError`, and `EditError` for a multiplier that no strength
    reaches.
    """
    if scale != "pole":
        return factor * per_factor(scale, method, steering, engine, contrast)
    clamps = [i.edit for i in steering.interventions if isinstance(i.edit, Clamp)]
    if len(clamps) != 1:
        raise ConfigError(
            f"a factor counts poles, and {type(method).__name__} made {len(clamps)} clamps; expected one."
        )
    return clamps[0].strength_of_multiplier(abs(factor), "positive" if factor > 0 else "negative")


def per_factor(scale: str, method: Method, steering: Steering, engine: Trainable, contrast: Contrast) -> float:
    """The strength of a steering that a published factor of 1 stands for.

    `strength` counts as we do, `trained` in the length that a vector was trained at, `latent` in largest latents. Raises
    `ConfigError` for another scale, and for a method that it doesn't fit.
    """
    if scale == "strength":
        return 1.0
    if scale == "trained" and isinstance(method, TrainedVector):
        return 1.0 / method.unit
    if scale == "latent":
        site, direction = reading(steering)
        size = float(direction.float().norm())
        texts = [*contrast.positive, *contrast.negative]
        along = {"": Reading(site, direction.float() / size)}
        most = float(latents(cast("HFEngine", engine), texts, along, MOST).tokens[""].max())
        return (most if most > 0 else WITHOUT_LATENT) / size
    raise ConfigError(
        f"a claim counts its factors in {scale!r} for {type(method).__name__}; expected one of {', '.join(SCALES)}, and trained"
        " for a method that trains a vector at factors alone."
    )
