"""Stock vLLM with the plug-in, on the model written as a checkpoint, against the reference.

vLLM runs in a process of its own (`_vllm`), under any Python that has it and steerlab: this one, or the one that `Options.vllm`
or STEERLAB_VLLM_PYTHON names. Replies are greedy and vLLM's own; what is compared is the log-probability of each of their tokens.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..engines.hf import HFEngine
from ..engines.hf_model import no_bars
from ..errors import ArtefactError, UnsupportedError
from ..steering import Steering
from ..vllm.rows import refused
from ._replies import Said, differ, effect, meant, mixture
from .base import Check, Options, Probe, Target, apart, interpreter, with_prompt, within

SECONDS = 3600
LONG = 300  # tokens of the long prompt: more than two blocks of the prefix cache, which has 128 tokens each on CPUs


class VLLM(Target):
    """Stock vLLM, steered request by request."""

    what: ClassVar[str] = "vLLM with the plug-in"
    tolerance: ClassVar[float] = 2e-4

    def check(self, engine: HFEngine, steering: Steering, probes: Sequence[Probe], options: Options) -> list[Check]:
        engine.accept(steering)
        if reasons := [reason for i in steering.interventions if (reason := refused(i))]:
            raise UnsupportedError(f"vLLM refuses this steering: {'; '.join(reasons)}.")
        python = python_of(options)
        room = min(engine.context, 4096) - options.tokens
        rows = mixture(steering, [*probes, lengthened(probes[0], min(LONG, room))])
        asked = [with_prompt(engine, p, None if s is None else steering.scaled(s)) for p, s in rows]
        with tempfile.TemporaryDirectory(prefix="steerlab-") as folder:
            model = Path(folder) / "model"
            write_checkpoint(engine, model)
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
            ran, cached = run(python, {**job, "rows": asks}, Path(folder))
            unsteered = [ask for ask in asks if ask["strength"] is None]
            bare, _ = run(python, {**job, "rows": unsteered, "bare": True}, Path(folder))
        most, line = self.most(engine, probes, options)
        wanted = [meant(engine, p, None if s is None else steering.scaled(s), said)
                  for p, (_, s), said in zip(asked, rows, ran["alone"], strict=True)]  # fmt: skip
        untouched = [n for n, (_, s) in enumerate(rows) if s is None]
        off = [n for n, (_, s) in enumerate(rows) if s == 0]
        again = differ(ran["again"], ran["alone"])
        plain = {p.ids: said for (p, s), said in zip(rows, ran["alone"], strict=True) if s is None}
        return [
            within("reference", "rows at several strengths are what the definition says",
                   apart([s.logprobs for s in ran["alone"]], wanted), most),
            within("mixed", "a row among rows of other strengths is the row alone", differ(ran["together"], ran["alone"]), most),
            within("neighbours", "unsteered rows beside them are those of a vLLM without the plug-in",
                   differ([ran["together"][n] for n in untouched], bare["together"]), most),
            within("cache", "with the prefix cache full of the others' prompts, rows are as with an empty one", again, most)
            if cached else Check("cache", None, "the prefix cache held none of these prompts", again),
            within("off", "strength 0 is what unsteered rows are",
                   differ([ran["alone"][n] for n in off], [plain[rows[n][0].ids] for n in off]), 0.0),
            Check("effect", None, "how far it moves a log-probability at most",
                  effect(engine, asked, rows, ran["alone"], wanted)),
            line,
        ]  # fmt: skip


def python_of(options: Options) -> str:
    """A Python that has vLLM. Raises `UnsupportedError` where there is none."""
    remedy = (
        "install steerlab[vllm], or name a Python that has both (--vllm PYTHON, or STEERLAB_VLLM_PYTHON; `make test-vllm`"
        " makes one for CPUs)."
    )
    return interpreter("vLLM", "vllm", options.vllm, "STEERLAB_VLLM_PYTHON", remedy)


def lengthened(probe: Probe, tokens: int) -> Probe:
    """The probe with its prompt over and over until it has so many tokens (as it is where it has as many)."""
    prompt, answer = probe.ids[: probe.prompt_length], probe.ids[probe.prompt_length :]
    many = max(tokens, len(prompt))
    whole = (prompt * (1 + many // len(prompt)))[:many]
    return probe._replace(ids=(*whole, *answer), prompt_length=many)


def run(python: str, job: Mapping[str, Any], folder: Path) -> tuple[dict[str, list[Said]], int]:
    """What vLLM said, and how many tokens the prefix cache had of the last time.

    Each row alone with an empty cache, all together, and together again with the cache as it then is.
    """
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
    cached = found.pop("cached")
    return {name: [Said(tuple(ids), torch.tensor(told)) for ids, told in rows] for name, rows in found.items()}, cached


def _needs(steering: Steering) -> dict[str, Any]:
    """The tables that it needs."""
    from ..vllm.batch import Plan
    from ..vllm.engine import needed

    rank, diag = needed(steering.interventions)
    plan = Plan.of("", steering.interventions, 64, 4)
    return {"rank": rank, "diag": diag, "gates": plan.gate is not None, "classes": max(1, len(plan.classes))}


def write_checkpoint(engine: HFEngine, folder: Path) -> None:
    """The model as it is in memory, with its tokenizer."""
    with no_bars():
        engine.model.save_pretrained(folder)
    engine.tokenizer.save_pretrained(folder)
