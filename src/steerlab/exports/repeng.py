"""repeng's `ControlVector.export_gguf`: llama.cpp's layout, with block 0, which repeng has and llama.cpp lacks."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from .gguf import GGUF


class Repeng(GGUF):
    """A control vector for repeng. Read any with the format `gguf`."""

    what: ClassVar[str] = "repeng's control vector"
    first_layer: ClassVar[int] = 0
    reads: ClassVar[bool] = False
    why_not_read: ClassVar[str] = "the format gguf reads these files"

    def claims(self, path: Path) -> bool:
        return False
