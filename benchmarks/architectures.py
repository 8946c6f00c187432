"""Every model type of transformers' causal list, tiny: steered or refused, and whether a row in company is the row alone.

One process for each, with a limit on time and memory, so that none holds up the rest; what is done is kept in
runs/architectures.jsonl and not done again (delete it to begin anew). The table goes into docs/architectures.md.

    python benchmarks/architectures.py [TYPE ...]      exits with 1 where a type crashed, or gave another thing in company
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
JOURNAL, PAGE = ROOT / "runs" / "architectures.jsonl", ROOT / "docs" / "architectures.md"
SECONDS, BYTES = 60, 12 << 30
ALLOWED = 1e-5  # nats, float32
FIRST, LAST = "<!-- table -->", "<!-- end of table -->"


def one(kind: str, dtype: str = "float32") -> dict[str, Any]:
    """What is found of one type, in this process; once more in float64 where float32 is off, which then says if it's rounding."""
    resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    from steerlab.engines.hf import HFEngine
    from steerlab.errors import SteerlabError
    from steerlab.testing import batching, shrink, tiny

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    try:
        model = shrink.model_of(kind, getattr(torch, dtype))
    except Exception as problem:  # noqa: BLE001  # transformers' own, before the engine has any part in it
        return {"unbuilt": _line(problem)}

    def make(**settings: Any) -> HFEngine:
        return HFEngine(model, tiny.tokenizer(), **settings)

    try:
        engine = make()
        engine.trial.check()
        trial = engine.trial
        found: dict[str, Any] = {"refusal": trial.refusal, "parts": [*map(_part, engine.sites(engine.depth // 2))]}
        found |= {"mixed": trial.mixed, "alike": trial.alike, "joins": trial.joins, "pieces": trial.chunk(3) == 3}
        found["left"] = trial.pads("left")
        with tempfile.TemporaryDirectory() as folder:
            found["off"] = batching.all_of(make, Path(folder))
    except SteerlabError as problem:
        return {"refused": str(problem)}
    except Exception as problem:  # noqa: BLE001
        return {"crashed": f"{type(problem).__name__}: {_line(problem)}"}
    if dtype == "float32" and not max(found["off"].values()) < ALLOWED:
        return {**one(kind, "float64"), "float32": max(found["off"].values())}
    return found


def main(kinds: list[str]) -> int:
    import transformers.modeling_utils  # noqa: F401  # what every process needs
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    import steerlab.engines.hf_serving
    import steerlab.serve.scheduler  # noqa: F401

    JOURNAL.parent.mkdir(exist_ok=True)
    done = {row["kind"]: row for row in map(json.loads, JOURNAL.read_text().splitlines())} if JOURNAL.exists() else {}
    everything = sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    for n, kind in enumerate(kinds or everything):
        if kind in done and not kinds:
            continue
        started = time.perf_counter()
        done[kind] = {"kind": kind, **_apart(kind)}
        with JOURNAL.open("a") as file:
            file.write(json.dumps(done[kind]) + "\n")
        print(f"{n + 1:>3} {kind:<28} {outcome(done[kind])[0]} ({time.perf_counter() - started:.0f} s)", flush=True)
    rows = [done[kind] for kind in everything if kind in done]
    page(rows, len(everything))
    wrong = [row["kind"] for row in rows if outcome(row)[0] in ("crashed", "differs")]
    print(f"{len(rows)} types; crashed or different in company: {', '.join(wrong) or 'none'}")
    return 1 if wrong else 0


def _apart(kind: str) -> dict[str, Any]:
    """The same in a process of its own, begun from this one, which has the libraries already and has run nothing."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        child = os.fork()
        if not child:
            signal.signal(signal.SIGALRM, _late)
            signal.alarm(SECONDS)
            with Path(folder, "said").open("w") as said:
                os.dup2(said.fileno(), 1)
                os.dup2(said.fileno(), 2)
                answer.write_text(json.dumps(one(kind)))
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if answer.exists():
            return json.loads(answer.read_text())
        late = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM
        return {"crashed": f"not done in {2 * SECONDS} s" if late else f"its process ended with {status}"}


def _late(*_: object) -> None:
    """Too long: an error where it is, so that a model which is slow to make isn't taken for one that runs wrongly."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(SECONDS)  # where nobody listens, the process ends
    raise TimeoutError(f"not done in {SECONDS} s")


def outcome(row: dict[str, Any]) -> tuple[str, str]:
    """One word, and what there is to say."""
    if "unbuilt" in row:
        return "not built", f"no tiny one could be made of its configuration: {row['unbuilt']}"
    if "crashed" in row:
        return "crashed", row["crashed"]
    if "refused" in row:
        return "refused", row["refused"]
    far = {name: off for name, off in row["off"].items() if not off < ALLOWED}
    if far:
        return "differs", ", ".join(f"{name} {off:.0e}" for name, off in far.items())
    rounding = f"in float64; in float32 rounding alone gives {row['float32']:.0e}" if "float32" in row else ""
    return ("scores" if row["refusal"] else "steered"), row["refusal"] or rounding


def together(row: dict[str, Any]) -> str:
    """How rows of it decode together."""
    if "off" not in row or row["refusal"]:
        return ""
    how = "all" if row["mixed"] else "of one length" if row["alike"] else "alone"
    return how + (", join" if row["joins"] else "") + ("" if row["pieces"] else ", prompts whole")


def page(rows: list[dict[str, Any]], of: int) -> None:
    """Write the table into the page."""
    words = [outcome(row)[0] for row in rows]
    counts = ", ".join(f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words)))
    table = [
        f"{len(rows)} of {of} types: {counts}.",
        "",
        "| type | | rows together | sites in a block | off (nats) | |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        word, why = outcome(row)
        off = f"{max(row['off'].values()):.0e}" if "off" in row else ""
        why = why.replace("|", "\\|").replace("<", "&lt;")
        table.append(f"| {row['kind']} | {word} | {together(row)} | {' '.join(row.get('parts', []))} | {off} | {why} |")
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(FIRST)[0], text.split(LAST)[1]
    PAGE.write_text(f"{before}{FIRST}\n{chr(10).join(table)}\n{LAST}{after}", encoding="utf-8")


def _part(site: Any) -> str:
    return site.part


def _line(problem: BaseException) -> str:
    return (str(problem).strip().splitlines() or ["no word"])[0][:160]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
