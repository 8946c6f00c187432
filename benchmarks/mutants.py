"""Breaks things on purpose and shows that the laws catch each: `make mutants`.

Each mutant is one wrong line in a copy of the package. The laws run on the copy until the first one fails; a mutant that
survives is a hole in the laws, and the script exits with 1.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).resolve().parents[1] / "src"


class Mutant(NamedTuple):
    name: str
    file: str
    old: str
    new: str
    tests: str = "test_engines.py test_sites.py test_generation.py"  # laws, or files of tests/, run one after another


MUTANTS = (
    Mutant("prompt mask off by one", "positions.py", "in_prompt = position < n\n", "in_prompt = position < n - 1\n"),
    Mutant("generated window off by one", "positions.py", "within = position >= n + start\n            if stop is not None:\n                within &= position < n + stop", "within = position >= n + start + 1\n            if stop is not None:\n                within &= position < n + stop"),
    Mutant("a window of generated tokens never ends", "positions.py", "any(start <= k and stop is None for start, stop, _", "any(start <= k for start, stop, _", "test_positions.py"),
    Mutant("what is worked out once leaves out the strength", "edits/linear.py", "added = s * self.v", "added = self.v", "test_edits.py"),
    Mutant("who joins a row is steered as it is", "engines/hf_hooks.py", "        if self.whole(len(h)):\n            return edit(", "        if len(self.rows) == 1:\n            return edit(", "tests/test_continuous.py"),
    Mutant("a gate's rows share a strength", "engines/hf_hooks.py", "        return (strength * own).expand(", "        return (strength * own[:1]).expand(", "tests/test_continuous.py"),
    Mutant("a gate's decisions are told of another row's", "engines/hf_hooks.py", "        self.controls += other.controls\n", "        self.controls += other.controls[::-1]\n", "tests/test_continuous.py"),
    Mutant("a batch keeps what was worked out for rows that left", "engines/hf_hooks.py", "        self._ready = self._steady = None\n", "        self._ready = None\n", "tests/test_continuous.py"),
    Mutant("padding is steered", "positions.py", "within = (position >= first) & (position >= origin)", "within = (position >= first) | (position < 0)", "test_positions.py"),
    Mutant("template's head is steered", "positions.py", 'origin = head if anchor == "body" else 0', "origin = 0", "test_positions.py"),
    Mutant("no cast back to the model's dtype", "edits/base.py", "return self.apply(h.float(), s).to(h.dtype)", "return self.apply(h.float(), s)", "test_edits.py"),
    Mutant("edit computed in the model's dtype", "edits/base.py", "return self.apply(h.float(), s).to(h.dtype)", "return self.apply(h, s.to(h.dtype)).to(h.dtype)"),
    Mutant("a hook is left behind", "engines/hf_hooks.py", "                handle.remove()\n", "                pass\n"),
    Mutant("cache position one behind", "engines/hf_generate.py", "        self._last = self._last + 1\n", ""),
    Mutant("sign of the strength swapped", "edits/linear.py", "return torch.where(size <= 1, a + size * (p - a), p + (size - 1) * (p - o))", "return torch.where(size <= 1, a + size * (o - a), o + (size - 1) * (o - p))", "test_edits.py"),
    Mutant("row 0's strength for every row", "engines/hf_hooks.py", "return self._ready\n", "return self._ready[0], self._ready[1][:1].expand_as(self._ready[1])\n"),
    Mutant("block input instead of its output", "engines/hf_sites.py", 'return Point(block.module, "output", None, self.width)', 'return Point(block.module, "input", None, self.width)'),
    Mutant("keys and values exchanged", "engines/hf_layout.py", 'read[role] = place * heads', 'read[{"key": "value", "value": "key"}.get(role, role)] = place * heads'),
    Mutant("rows not dropped from the plan", "engines/hf_generate.py", "        self._plan.keep(staying)\n", ""),
    Mutant("strength scales tensors twice", "edits/linear.py", "return h + s * self.v", "return h + s * s.abs() * self.v", "test_edits.py"),
    Mutant("a gate decides too late", "controls.py", "deciding = tokens.position == tokens.prompt_length[:, None] - 1", "deciding = tokens.position == tokens.prompt_length[:, None]"),
    Mutant("another row's seed", "engines/sampling.py", "return [self.seed + i for i in range(rows)]", "return [self.seed + rows - i for i in range(rows)]"),
    Mutant("the model's mode is not restored", "engines/hf_watch.py", "            module.training = True\n", "            module.training = False\n"),
    Mutant("dropout of gradients: the model learns", "engines/hf.py", "with without_gradients(self.model):", "with torch.enable_grad():"),
    Mutant("difference of means reversed", "methods/base.py", "gap = positive.double().mean(dim=0) - negative.double().mean(dim=0)", "gap = negative.double().mean(dim=0) - positive.double().mean(dim=0)", "test_methods.py"),
    Mutant("a change of weights has the wrong sign", "deltas.py", "return s * (narrow if self.left is None", "return -s * (narrow if self.left is None", "test_deltas.py"),
    Mutant("a change of weights is added to every row", "engines/hf_hooks.py", "output = changed if group.whole(len(output)) else output.index_copy(0, rows, changed)", "output = changed if group.whole(len(output)) else output + (changed - output[rows]).mean(0)", "test_deltas.py"),
    Mutant("weights act after activations", "engines/hf_hooks.py", "module.register_forward_hook(self._on_output(sites))", "module.register_forward_hook(self._on_output(sites), prepend=True)", "test_deltas.py"),
    Mutant("a narrowed last block gets changed weights", "engines/hf_pass.py", "s.reached >= (layer, -1)", "s.reached >= (layer, 0)", "test_trained.py"),
    Mutant("what is read inside of a block is narrowed away", "engines/hf_pass.py", "hooks.sites - {top}", "set()", "test_passes.py"),
    Mutant("a preference vector is a sum", "methods/weight_contrast.py", '-free["left -"]', 'free["left -"]', "test_methods.py"),
    Mutant("a training pass begins one block late", "methods/frozen.py", 'layer = lowest.layer if lowest.part == "resid"', 'layer = lowest.layer + 1 if lowest.part == "resid"', "test_trained.py"),
    Mutant("a fused derivative is off by a factor", "methods/fused.py", "gradient = a.sub_(mine[:, None]).mul_(p.p).mul_(0.5)", "gradient = a.sub_(mine[:, None]).mul_(p.p)", "test_trained.py"),
    Mutant("sorted examples come back in another order", "methods/said.py", "position = torch.tensor(order).argsort()", "position = torch.tensor(order)", "test_trained.py"),
    Mutant("rows of one fit get the edit of another", "methods/fitting.py", "begins = [0, *ends[:-1]]", "begins = [0] * len(ends)", "test_trained.py"),
    Mutant("the server forgets the steering", "serve/begin.py", "prompt, resolved.steering, replace(", "prompt, None, replace(", "tests/test_serve.py"),
    Mutant("the server drops the strength", "serve/resolve.py", "entry.steering.scaled(term.strength)", "entry.steering.scaled(1.0)", "tests/test_serve.py"),
    Mutant("the server turns the sign round", "serve/resolve.py", "entry.steering.scaled(term.strength)", "entry.steering.scaled(-term.strength)", "tests/test_serve.py"),
    Mutant("the server drops a request's positions", "serve/resolve.py", "placed = _moved(steering, term.positions)", "placed = steering", "tests/test_serve.py"),
    Mutant("the server takes steerings of any model", "serve/service.py", "call(lambda: self.engine.accept(entry.steering))", "call(lambda: None)", "tests/test_serve_uploads.py"),
    Mutant("replies to one request share a seed", "serve/begin.py", "seed=seed + k)", "seed=seed)", "tests/test_serve.py"),
    Mutant("caches are joined padded on the wrong side", "engines/hf_cache.py", "torch.cat([t.new_zeros((*t.shape[:dim], spare, *t.shape[dim + 1 :])), t], dim)", "torch.cat([t, t.new_zeros((*t.shape[:dim], spare, *t.shape[dim + 1 :]))], dim)", "tests/test_continuous.py"),
    Mutant("a part that goes unsteered is steered", "engines/hf_generate.py", "row.resting = inside(", "row.resting = False and inside(", "tests/test_serve_tools.py"),
    Mutant("a tool that wasn't offered is called", "serve/talk.py", "or name not in offered", "or False", "tests/test_serve_tools.py"),
    Mutant("a removed steering of another server is served", "serve/store.py", "        if stamp is None:\n            self._forget(name)", "        if stamp is None:\n            pass", "tests/test_serve_replicas.py"),
    Mutant("the reference scale of preferences reversed", "methods/objectives.py", "(reference_rejected - reference_chosen).clamp_min(1)", "(reference_chosen - reference_rejected).clamp_min(1)", "tests/test_losses.py"),
    Mutant("preferences turned round", "methods/objectives.py", "-logsigmoid(scale / chosen_tokens * chosen - rejected / rejected_tokens)", "-logsigmoid(rejected / rejected_tokens - scale / chosen_tokens * chosen)", "tests/test_losses.py"),
    Mutant("RePS's null pair swapped", "methods/reps.py", "Row(plain, 0.0, tag=NULL), Row(concept, 0.0, tag=NULL + LOSER)", "Row(concept, 0.0, tag=NULL), Row(plain, 0.0, tag=NULL + LOSER)", "tests/test_losses.py"),
    Mutant("RePS serves another vector than it trained", "methods/reps.py", "float(b.detach()) / self.unit)", "0.0)", "test_trained.py"),
    Mutant("ReFT-r1's penalty turned round, twenty times", "methods/reft_r1.py", "return cost + self.sparsity", "return cost - 20 * self.sparsity", "tests/test_losses.py"),
    Mutant("BiPO's sign is forgotten", "methods/bipo.py", "-logsigmoid(sign * self.beta * gained)", "-logsigmoid(self.beta * gained)", "tests/test_losses.py"),
    Mutant("BiPO's scale doubled", "methods/bipo.py", "-logsigmoid(sign * self.beta * gained)", "-logsigmoid(2 * sign * self.beta * gained)", "tests/test_losses.py"),
    Mutant("SPLIT's hinge turned round", "methods/split.py", "gap = without - with_it", "gap = with_it - without", "tests/test_losses.py"),
    Mutant("SPLIT's utility doubled", "methods/split.py", "self.utility * without.mean()", "2 * self.utility * without.mean()", "tests/test_losses.py"),
    Mutant("costs of tokens turned round", "methods/vectors.py", "return said.each(CrossEntropy(said.tokens))", "return -said.each(CrossEntropy(said.tokens))", "tests/test_losses.py"),
    Mutant("the interchange's cost doubled", "methods/interchange.py", "return (each * weight).sum() / weight.sum()", "return 2 * (each * weight).sum() / weight.sum()", "tests/test_losses.py"),
    Mutant("the interchange goes the other way", "methods/interchange.py", "moved = wanted - x @ basis.T", "moved = x @ basis.T - wanted", "tests/test_losses.py"),
    Mutant("KL-DAS goes the other way", "methods/kl_das.py", 'reverse=self.direction == "reverse"', 'reverse=self.direction != "reverse"', "tests/test_losses.py"),
    Mutant("PDAS prefers its own answer", "methods/pdas.py", 'preferred(step.only(""), step.only(OWN))', 'preferred(step.only(OWN), step.only(""))', "tests/test_losses.py"),
    Mutant("the second training of preference vectors isn't swapped", "methods/preference_vector.py", "self.prefer(minus[NO], minus[YES])", "self.prefer(minus[YES], minus[NO])", "tests/test_losses.py"),
    Mutant("DPO's margin doubled", "methods/preference_vector.py", "self.beta * (won - lost)", "2 * self.beta * (won - lost)", "tests/test_losses.py"),
)  # fmt: skip


def main() -> int:
    chosen = [m for m in MUTANTS if all(word in m.name for word in sys.argv[1:])]
    survivors = []
    for mutant in chosen:
        started = time.perf_counter()
        caught = catches(mutant)
        print(
            f"{'caught  ' if caught else 'SURVIVED'} {mutant.name:42} {time.perf_counter() - started:5.1f} s  {caught or ''}",
            flush=True,
        )
        if not caught:
            survivors.append(mutant.name)
    print(f"bar mutants_caught {len(chosen) - len(survivors)} {len(chosen)}")
    return 1 if survivors else 0


def catches(mutant: Mutant) -> str:
    """The law that fails on the mutant; empty where all pass."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "src"
        shutil.copytree(SOURCE, copy, ignore=shutil.ignore_patterns("__pycache__", "weights"))
        file = copy / "steerlab" / mutant.file
        text = file.read_text()
        if mutant.old not in text:
            raise SystemExit(
                f"{mutant.name}: the line to break is no longer in {mutant.file}; bring the mutant up to date."
            )
        file.write_text(text.replace(mutant.old, mutant.new))
        laws = [
            SOURCE.parent / name if name.startswith("tests/") else copy / "steerlab" / "testing" / name
            for name in mutant.tests.split()
        ]
        command = [
            sys.executable, "-m", "pytest", "-x", "-q", "--no-header", "-p", "no:cacheprovider", "-c", os.devnull,
            "--tb=no", *map(str, laws),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        found = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=folder)
        failed = [line for line in found.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if found.returncode not in (0, 1):
            raise SystemExit(f"{mutant.name}: the laws did not run:\n{found.stdout}{found.stderr}")
        return failed[0].split("::", 1)[-1].split(" - ")[0] if failed else ""


if __name__ == "__main__":
    sys.exit(main())
