"""Runs in a process of its own: rows through vLLM, alone, together, and together again. usage: _vllm JOB.json SAID.json"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

Reply = tuple[list[int], list[float]]


def main(given: str, out: str) -> None:
    """Read the job, run it, write what was said."""
    job: dict[str, Any] = json.loads(Path(given).read_text(encoding="utf-8"))
    vllm: Any = importlib.import_module("vllm")
    tables = {name: job[name] for name in ("rank", "diag", "gates", "classes")} | {"adopt": True}
    ours = {} if job.get("bare") else {"additional_config": {"steerlab": {"steerings": job["steerings"], **tables}}}
    llm = vllm.LLM(job["model"], dtype=job["dtype"], enforce_eager=job["eager"], max_model_len=job["context"], seed=0,
                   max_num_seqs=32, enable_prefix_caching=True, **ours)  # fmt: skip

    cached = [0]

    def say(rows: list[dict[str, Any]]) -> list[Reply]:
        prompts = [{"prompt_token_ids": row["ids"]} for row in rows]
        how = [vllm.SamplingParams(max_tokens=job["tokens"], temperature=0, logprobs=0, detokenize=False, extra_args=_extra(row))
               for row in rows]  # fmt: skip
        replies = llm.generate(prompts, how, use_tqdm=False)
        cached[0] = sum(int(found.num_cached_tokens or 0) for found in replies)
        return [_reply(found.outputs[0]) for found in replies]

    alone: list[Reply] = []
    for row in job["rows"]:
        llm.reset_prefix_cache()
        alone += say([row])
    llm.reset_prefix_cache()
    said = {"alone": alone, "together": say(job["rows"]), "again": say(job["rows"]), "cached": cached[0]}
    Path(out).write_text(json.dumps(said), encoding="utf-8")


def _extra(row: dict[str, Any]) -> dict[str, Any] | None:
    if row["strength"] is None:
        return None
    terms = [{"name": "it", "strength": row["strength"]}]
    return {"steerlab": {"steering": terms, "head": row["head"], "prompted": True}}


def _reply(output: Any) -> Reply:
    ids = [int(token) for token in output.token_ids]
    return ids, [float(told[token].logprob) for token, told in zip(ids, output.logprobs, strict=True)]


if __name__ == "__main__":
    main(*sys.argv[1:])
