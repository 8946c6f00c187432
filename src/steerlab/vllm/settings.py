"""What a server is told at its start, in vLLM's own `additional_config` under the key `steerlab`, or as STEERLAB_VLLM (JSON)."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast

from ..errors import ConfigError, nearest
from .tables import Size

KEY = "steerlab"
VARIABLE = "STEERLAB_VLLM"


@dataclass(frozen=True)
class Settings:
    """How much can be steered, and with what.

    `steerings` is a folder of files, named in requests by their file's name. Tables are kept for all blocks, or those in
    `layers`, with `rank` directions in each (a rank-1 Clamp or Push takes one, a Shift none) and, with `diag`, a scale for each
    dimension; each row reads `reads` read-outs at a block and, with `gates`, may have a gate. A request may have so many
    `classes` of tokens that are steered differently. `adopt` takes steerings that were fitted on another model or template.
    With `canary` off nothing is checked at start-up, which is for measuring alone.
    """

    steerings: str = ""
    layers: tuple[int, ...] | None = None
    rank: int = 1
    diag: bool = False
    reads: int = 0
    gates: bool = False
    classes: int = 3
    adopt: bool = False
    canary: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.rank <= 64:
            raise ConfigError(f"the tables' rank is {self.rank}; expected 0 (shifts alone) to 64.")
        if not 0 <= self.reads <= 64:
            raise ConfigError(f"reads is {self.reads}; expected 0 (no read-outs) to 64.")
        if not 1 <= self.classes <= 16:
            raise ConfigError(f"classes is {self.classes}; expected 1 to 16.")
        if self.layers is not None and (not self.layers or list(self.layers) != sorted({*self.layers})):
            raise ConfigError(f"layers is {list(self.layers)}; expected blocks in ascending order, each once.")

    @property
    def folder(self) -> Path | None:
        """Where the steerings are; None where they are brought another way. Raises `ConfigError` where that is no folder."""
        if not self.steerings:
            return None
        path = Path(self.steerings)
        if not path.is_dir():
            raise ConfigError(
                f"the folder of steerings is {self.steerings!r}, which doesn't exist; give"
                ' {"steerlab": {"steerings": FOLDER}} as additional_config.'
            )
        return path

    def size(self, *, depth: int, width: int, requests: int) -> Size:
        """The tables of a model for so many requests at a time. Raises `ConfigError` for a block that it lacks."""
        layers = tuple(range(depth)) if self.layers is None else self.layers
        if layers[0] < 0 or layers[-1] >= depth:
            raise ConfigError(f"layers is {list(layers)}; this model has the blocks 0 to {depth - 1}.")
        rows = 1 + requests * self.classes * (1 + self.gates)  # of a gate's two rows both may be needed
        return Size(layers, rows, width, self.rank, self.diag, self.reads, self.gates)

    @classmethod
    def read(cls, given: object) -> Settings | None:
        """The settings in vLLM's `additional_config`, or else those of the variable; None where there are neither.

        Raises `ConfigError` with the nearest legal name.
        """
        found: object = cast("Mapping[str, Any]", given).get(KEY) if isinstance(given, Mapping) else None
        if found is None:
            text = os.environ.get(VARIABLE)
            if not text:
                return None
            try:
                found = json.loads(text)
            except ValueError as problem:
                raise ConfigError(f"{VARIABLE} isn't valid JSON: {problem}.") from problem
        if not isinstance(found, Mapping):
            raise ConfigError(
                f"the settings of steerlab are {found!r}; expected an object such as {{'steerings': FOLDER}}."
            )
        row = dict(cast("Mapping[str, Any]", found))
        legal = {f.name: f.type for f in fields(cls)}
        for name, value in row.items():
            if name not in legal:
                raise ConfigError(f"steerlab has no setting {name!r} in vLLM. {nearest(name, legal)}")
            whole = name in ("rank", "reads", "classes")
            kind: Any = int if whole else {"steerings": str, "layers": (list, tuple, type(None))}.get(name, bool)
            if not isinstance(value, kind) or (whole and isinstance(value, bool)):
                raise ConfigError(f"steerlab's setting {name} is {value!r}; see steerlab.vllm.settings.Settings.")
        if row.get("layers") is not None:
            if not all(isinstance(n, int) for n in row["layers"]):
                raise ConfigError(f"layers is {row['layers']!r}; expected numbers of blocks.")
            row["layers"] = tuple(row["layers"])
        return cls(**row)
