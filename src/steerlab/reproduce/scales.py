"""What a published factor is as a strength: strength 1 is a fitted steering's own size, and papers count in other units.

AxBench (https://arxiv.org/abs/2501.17148, section 4) adds factor · max_act · v, v of unit length and max_act the largest latent
of the concept's texts along it, 50 where none is above 0. Trained vectors are added factor times, as they were in training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast, get_args

from ..bench.axbench.latents import Reading, latents, reading
from ..errors import ConfigError
from ..methods.reft_r1 import WITHOUT_LATENT
from ..methods.vectors import TrainedVector

if TYPE_CHECKING:
    from ..contrast import Contrast
    from ..engines.base import Trainable
    from ..engines.hf import HFEngine
    from ..methods.base import Method
    from ..steering import Steering

Scale = Literal["strength", "trained", "latent"]
SCALES: tuple[Scale, ...] = get_args(Scale)
MOST = 512  # tokens of a text that are read


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
