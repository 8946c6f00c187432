"""steerlab: fit, apply, measure and ship interventions inside language models.

>>> import steerlab as sl
>>> engine = sl.load("pilot")                                # doctest: +SKIP
>>> steering = sl.method("cdas").fit(engine, sl.Contrast.read("formal.jsonl"))  # doctest: +SKIP
>>> engine.generate(["Describe a kitchen."], steering.scaled(-1))              # doctest: +SKIP

Importing the package loads neither torch nor transformers; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
    from .contrast import Contrast, Example, Message
    from .controls import Constant, Control, Gate, Network
    from .deltas import Delta
    from .edits import (
        Ablate,
        Adapter,
        Affine,
        AffineMap,
        Clamp,
        Descend,
        Edit,
        OneSided,
        PointTo,
        Push,
        Rotate,
        Scale,
        Shift,
        Transport,
    )
    from .engines.base import Reply, Runner, Sampling, Trainable
    from .engines.hf import HFEngine
    from .errors import (
        ArtefactError,
        ConfigError,
        DataError,
        EditError,
        JudgeError,
        SiteError,
        SteerlabError,
        UnsupportedError,
    )
    from .hub import push_to_hub
    from .judges.base import Judge, Score
    from .loading import load, read_concepts, read_data, read_prompts
    from .methods.base import Method, method
    from .methods.gates import gated
    from .methods.generator import Generator
    from .positions import (
        ALL,
        DECODING,
        GENERATED,
        LAST_PROMPT,
        NOT_TEMPLATE,
        PROMPT,
        Positions,
        Window,
        first,
        last,
    )
    from .sites import Site
    from .steering import Intervention, Meta, Prompt, Steering

_HOMES = {
    "contrast": ("Contrast", "Example", "Message"),
    "controls": ("Constant", "Control", "Gate", "Network"),
    "deltas": ("Delta",),
    "edits": (
        "Ablate", "Adapter", "Affine", "AffineMap", "Clamp", "Descend", "Edit", "OneSided", "PointTo", "Push", "Rotate",
        "Scale", "Shift", "Transport",
    ),
    "engines.base": ("Reply", "Runner", "Sampling", "Trainable"),
    "engines.hf": ("HFEngine",),
    "errors": (
        "ArtefactError", "ConfigError", "DataError", "EditError", "JudgeError", "SiteError", "SteerlabError",
        "UnsupportedError",
    ),
    "hub": ("push_to_hub",),
    "judges.base": ("Judge", "Score"),
    "loading": ("load", "read_concepts", "read_data", "read_prompts"),
    "methods.base": ("Method", "method"),
    "methods.gates": ("gated",),
    "methods.generator": ("Generator",),
    "positions": (
        "ALL", "DECODING", "GENERATED", "LAST_PROMPT", "NOT_TEMPLATE", "PROMPT", "Positions", "Window", "first", "last",
    ),
    "sites": ("Site",),
    "steering": ("Intervention", "Meta", "Prompt", "Steering"),
}  # fmt: skip
_HOME = {name: module for module, held in _HOMES.items() for name in held}

__all__ = [  # noqa: RUF022  (plain order, the version last)
    "ALL", "Ablate", "Adapter", "Affine", "AffineMap", "ArtefactError", "Clamp", "ConfigError", "Constant", "Contrast",
    "Control", "DECODING", "DataError", "Delta", "Descend", "Edit", "EditError", "Example", "GENERATED", "Gate",
    "Generator", "HFEngine", "Intervention", "Judge", "JudgeError", "LAST_PROMPT", "Message", "Meta", "Method",
    "NOT_TEMPLATE", "Network", "OneSided", "PROMPT", "PointTo", "Positions", "Prompt", "Push", "Reply", "Rotate", "Runner",
    "Sampling", "Scale", "Score", "Shift", "Site", "SiteError", "Steering", "SteerlabError", "Trainable", "Transport",
    "UnsupportedError", "Window", "first", "gated", "last", "load", "method", "push_to_hub", "read_concepts", "read_data",
    "read_prompts", "__version__",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'steerlab' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
