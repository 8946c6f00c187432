"""The exported control vector in real llama.cpp, on the model written as GGUF in float32, against the hook.

llama.cpp runs in a process of its own (`_llamacpp`), under any Python that has llama-cpp-python: this one, or the one that
`Options.llamacpp` or STEERLAB_LLAMACPP names. Keys and values are kept in float32 there: with its default of float16 the
unsteered model already differs from transformers by 1e-2. The vector acts on every sequence of a context, so no row can be left
alone beside a steered one.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from .. import exports
from ..engines.hf import HFEngine
from ..errors import ArtefactError
from ..steering import Steering
from . import _plain
from ._llama_model import write_model
from .base import Check, Options, Probe, Target, apart, interpreter, scored, within

PASSES = ("bare", "steered", "together", "steps", "after")  # what `_llamacpp` runs
SECONDS = 1800


class GGUF(Target):
    """llama.cpp with the exported control vector."""

    what: ClassVar[str] = "llama.cpp with the exported control vector"
    tolerance: ClassVar[float] = 1e-4

    def check(self, engine: HFEngine, steering: Steering, probes: Sequence[Probe], options: Options) -> list[Check]:
        exports.format_named("gguf").check(steering, engine)
        python = python_of(options)
        with tempfile.TemporaryDirectory(prefix="steerlab-") as folder:
            vector, model = Path(folder) / "vector.gguf", Path(folder) / "model.gguf"
            exports.write(steering, vector, "gguf", engine=engine)
            write_model(engine, model)
            ran = run(python, model, vector, [p.ids for p in probes], Path(folder))
        wanted = [_plain.logits(engine, p, steering) for p in probes]
        bare = [_plain.logits(engine, p) for p in probes]

        def off(name: str, other: Sequence[Tensor]) -> float:
            pairs = [(scored(a, p), scored(b, p)) for a, b, p in zip(ran[name], other, probes, strict=True)]
            return apart([a for a, _ in pairs], [b for _, b in pairs])

        most, line = self.most(engine, probes, options)
        return [
            within("reference", "llama.cpp has the log-probabilities of the hook", off("steered", wanted), most),
            within("logits", "and its logits at every token", apart(ran["steered"], wanted), max(most, 1e-4)),
            within(
                "mixed",
                "a sequence beside others in one batch is the sequence alone",
                off("together", ran["steered"]),
                most,
            ),
            within("neighbours", "without the vector it is the bare model", off("bare", bare), most),
            within("cache", "read token by token it is read at once", off("steps", ran["steered"]), most),
            within("off", "with the vector taken off it is as before", apart(ran["after"], ran["bare"]), 0.0),
            line,
        ]


def python_of(options: Options) -> str:
    """A Python that has llama-cpp-python. Raises `UnsupportedError` where there is none."""
    remedy = "install it (pip install llama-cpp-python), or name a Python that has it (--llamacpp PYTHON, or STEERLAB_LLAMACPP)."
    return interpreter("llama-cpp-python", "llama_cpp", options.llamacpp, "STEERLAB_LLAMACPP", remedy)


def run(python: str, model: Path, vector: Path, rows: Sequence[Sequence[int]], folder: Path) -> dict[str, list[Tensor]]:
    """Logits `[t, v]` of each row: bare, steered alone, steered in one batch, steered token by token, and bare again."""
    given, out = folder / "rows.npz", folder / "logits.npz"
    np.savez(given, **{str(n): np.array(row, dtype=np.int32) for n, row in enumerate(rows)})  # pyright: ignore[reportArgumentType]
    script = Path(__file__).with_name("_llamacpp.py")
    words = [python, str(script), str(model), str(vector), str(given), str(out)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS)
    if done.returncode or not out.is_file():
        raise ArtefactError(
            f"llama.cpp ended with {done.returncode}: {done.stderr.strip()[-400:] or 'nothing was said'}"
        )
    with np.load(out, allow_pickle=False) as found:
        return {name: [torch.from_numpy(found[f"{name}.{n}"]) for n in range(len(rows))] for name in PASSES}
