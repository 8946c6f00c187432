"""Stock vLLM with the plug-in, on the model written as a checkpoint, against the reference.

vLLM runs in a process of its own (`_vllm`), under any Python that has it and steerlab: this one, or the one that `Options.vllm`
or STEERLAB_VLLM_PYTHON names. Replies are greedy and vLLM's own; what is compared is the log-probability of each of their tokens.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..engines.hf import HFEngine
from ..errors import ArtefactError, UnsupportedError
from ..steering import Steering
from ..vllm.rows import refused
from . import _plain
from .base import Check, Options, Probe, Target, apart, scored, with_prompt, within

SECONDS = 3600
ROWS = 16


class Said(NamedTuple):
    """A reply: its tokens and their log-probabilities."""

    ids: tuple[int, ...]
    logprobs: Tensor


class VLLM(Target):
    """Stock vLLM, steered request by request."""

    what: ClassVar[str] = "vLLM with the plug-in"
    tolerance: ClassVar[float] = 2e-4

    def check(self, engine: HFEngine, steering: Steering, probes: Sequence[Probe], options: Options) -> list[Check]:
        engine.accept(steering)
        if reasons := [reason for i in steering.interventions if (reason := refused(i))]:
            raise UnsupportedError(f"vLLM refuses this steering: {'; '.join(reasons)}.")
        python = interpreter(options)
        rows = _rows(steering, probes)
        asked = [with_prompt(engine, p, None if s is None else steering.scaled(s)) for p, s in rows]
        with tempfile.TemporaryDirectory(prefix="steerlab-") as folder:
            model = Path(folder) / "model"
            _write(engine, model)
            (Path(folder) / "steerings").mkdir()
            steering.save(Path(folder) / "steerings" / "it.safetensors")
            job = {
                "model": str(model), "steerings": str(Path(folder) / "steerings"), "dtype": str(engine.model.dtype)[6:],
                "eager": not options.compiled, "tokens": options.tokens, "context": min(engine.context, 4096),
                **_needs(steering),
            }  # fmt: skip
            asks = [
                {"ids": p.ids[: p.prompt_length], "head": p.head, "strength": s}
                for p, (_, s) in zip(asked, rows, strict=True)
            ]
            ran = run(python, {**job, "rows": asks}, Path(folder))
            unsteered = [ask for ask in asks if ask["strength"] is None]
            bare = run(python, {**job, "rows": unsteered, "bare": True}, Path(folder))
        most, line = self.most(engine, probes, options)
        wanted = [_scored(engine, p, None if s is None else steering.scaled(s), said)
                  for p, (_, s), said in zip(asked, rows, ran["alone"], strict=True)]  # fmt: skip
        untouched = [n for n, (_, s) in enumerate(rows) if s is None]
        off = [n for n, (_, s) in enumerate(rows) if s == 0]
        plain = {p.ids: said for (p, s), said in zip(rows, ran["alone"], strict=True) if s is None}
        return [
            within("reference", "rows at several strengths are what the definition says",
                   apart([s.logprobs for s in ran["alone"]], wanted), most),
            within("mixed", "a row among rows of other strengths is the row alone", _differ(ran["together"], ran["alone"]), most),
            within("neighbours", "unsteered rows beside them are those of a vLLM without the plug-in",
                   _differ([ran["together"][n] for n in untouched], bare["together"]), most),
            within("cache", "with the prefix cache full of the others' prompts, rows are as with an empty one",
                   _differ(ran["again"], ran["alone"]), most),
            within("off", "strength 0 is what unsteered rows are",
                   _differ([ran["alone"][n] for n in off], [plain[rows[n][0].ids] for n in off]), 0.0),
            Check("effect", None, "how far it moves a log-probability at most",
                  _effect(engine, asked, rows, ran["alone"], wanted)),
            line,
        ]  # fmt: skip


def interpreter(options: Options) -> str:
    """A Python that has vLLM. Raises `UnsupportedError` where there is none."""
    named = options.vllm or os.environ.get("STEERLAB_VLLM_PYTHON")
    if named is None and importlib.util.find_spec("vllm") is not None:
        return sys.executable
    if named is None or not Path(named).is_file():
        what = "isn't installed here" if named is None else f"was looked for at {named}, where there is no file"
        raise UnsupportedError(
            f"vLLM {what}; install steerlab[vllm], or name a Python that has both (--vllm PYTHON, or STEERLAB_VLLM_PYTHON;"
            " `make test-vllm` makes one for CPUs)."
        )
    return named


def run(python: str, job: Mapping[str, Any], folder: Path) -> dict[str, list[Said]]:
    """What vLLM said: each row alone with an empty cache, all together, and together again with the cache as it then is."""
    given, out = folder / "job.json", folder / "said.json"
    given.write_text(json.dumps(job), encoding="utf-8")
    out.unlink(missing_ok=True)
    words = [python, "-m", "steerlab.verify._vllm", str(given), str(out)]
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    space = os.environ.get(
        "VLLM_CPU_KVCACHE_SPACE", "1"
    )  # GiB; where there is no GPU vLLM wants nearly all memory otherwise
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in paths if p), "VLLM_CPU_KVCACHE_SPACE": space,
           "VLLM_NO_USAGE_STATS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "WARNING",
           "HF_HUB_OFFLINE": "1"}  # fmt: skip
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=SECONDS, env=env)
    if done.returncode or not out.is_file():
        told = [text for text in done.stderr.strip().splitlines() if "Error" in text]
        raise ArtefactError(
            f"vLLM ended with {done.returncode}: {(told or [done.stderr.strip()[-400:] or 'no word'])[-1][-600:]}"
        )
    found = json.loads(out.read_text(encoding="utf-8"))
    return {name: [Said(tuple(ids), torch.tensor(told)) for ids, told in rows] for name, rows in found.items()}


def _rows(steering: Steering, probes: Sequence[Probe]) -> list[tuple[Probe, float | None]]:
    """Each probe at several strengths, at 0 and untouched."""
    low, high = steering.domain
    strengths = [s for s in (1.0, 0.5, -1.0) if low <= s <= high and (steering.prompt is None or s != 0.5)]
    rows: list[tuple[Probe, float | None]] = []
    for n, probe in enumerate(probes):
        rows += [
            (probe, strengths[n % len(strengths)]),
            (probe, None),
            (probe, strengths[(n + 1) % len(strengths)]),
            (probe, 0.0),
        ]
    return rows


def _needs(steering: Steering) -> dict[str, Any]:
    """The tables that it needs."""
    from ..vllm.batch import Plan
    from ..vllm.engine import needed

    rank, diag = needed(steering.interventions)
    plan = Plan.of("", steering.interventions, 64, 4)
    return {"rank": rank, "diag": diag, "gates": plan.gate is not None, "classes": max(1, len(plan.classes))}


def _write(engine: HFEngine, folder: Path) -> None:
    engine.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)


def _scored(engine: HFEngine, probe: Probe, steering: Steering | None, said: Said) -> Tensor:
    whole = probe._replace(ids=(*probe.ids[: probe.prompt_length], *said.ids))
    return scored(_plain.logits(engine, whole, steering), whole)


def _differ(got: Sequence[Said], wanted: Sequence[Said]) -> float:
    """The largest difference up to where two replies part; infinite where they part by more than a near-tie."""
    most = 0.0
    for a, b in zip(got, wanted, strict=True):
        same = next((n for n, (x, y) in enumerate(zip(a.ids, b.ids)) if x != y), min(len(a.ids), len(b.ids)))
        until = min(
            same + 1, len(a.ids), len(b.ids)
        )  # where two tokens were as likely, both log-probabilities are alike
        most = max(most, apart([a.logprobs[:until]], [b.logprobs[:until]]))
    return most


def _effect(
    engine: HFEngine, asked: Sequence[Probe], rows: Sequence[tuple[Probe, float | None]], said: Sequence[Said],
    wanted: Sequence[Tensor],
) -> float:  # fmt: skip
    steered = [n for n, (_, s) in enumerate(rows) if s]
    return apart([wanted[n] for n in steered], [_scored(engine, asked[n], None, said[n]) for n in steered])
