"""lm-evaluation-harness with any steering: a model type `steerlab`, and its command line with that type known.

The harness finds model types by what was registered in its process, so that `steerlab lm-eval` registers ours and goes on
as `lm_eval`; from Python, `register()` and then `lm_eval.simple_evaluate(model="steerlab", ...)`. It is an extra
(`steerlab[eval]`) of 2 GB and best lives in an environment of its own.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any

from ..errors import ConfigError

NAME = "steerlab"


def register() -> type[Any]:
    """Make the model type known to the harness of this process, and return it. Raises `ConfigError` without the harness."""
    try:
        registry: Any = importlib.import_module("lm_eval.api.registry")
    except ImportError as problem:
        raise ConfigError(
            f"lm-evaluation-harness can't be imported ({problem}); install it with pip install 'steerlab[eval]', in an"
            " environment of its own where disk allows."
        ) from problem
    from .model import model_type

    made = model_type()
    known: Any = registry.MODEL_REGISTRY
    if NAME not in known:
        registry.register_model(NAME)(made)
    return made


def main(words: Sequence[str]) -> None:
    """Run the harness's own command line with the model type known, which is the default of `--model`."""
    register()
    given = list(words)
    verbs = ("run", "ls", "validate")
    verb = given.pop(0) if given and given[0] in verbs else "run"
    if verb == "run" and not any(w == "--model" or w.startswith("--model=") or w == "-M" for w in given):
        given = ["--model", NAME, *given]
    command: Any = importlib.import_module("lm_eval.__main__")
    before = sys.argv
    sys.argv = ["lm_eval", verb, *given]
    try:
        command.cli_evaluate()
    finally:
        sys.argv = before
