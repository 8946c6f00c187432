"""EasySteer's vectors for its `direct` algorithm: repeng's layout with the name of the method in the metadata."""

from __future__ import annotations

from typing import ClassVar

from ..steering import Steering
from .repeng import Repeng


class EasySteer(Repeng):
    """A vector for EasySteer. Read any with the format `gguf`."""

    what: ClassVar[str] = "EasySteer's vector (algorithm direct)"

    def also(self, steering: Steering) -> dict[str, str]:
        return {"controlvector.method": str(steering.meta.method.get("name", "steerlab"))}
