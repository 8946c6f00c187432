"""The recipe: trains a variant from nothing, seeded and resumable.

    python -m steerlab.pilot.train [--variant pilot] [--out DIR] [--tokens N] [--threads N]

Weights, optimiser state and progress are written beside and then renamed, as safetensors and JSON, every few minutes;
the same command goes on where an interrupted one stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # spinning threads slow each other down on a busy machine

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from .. import progress
from ..errors import ArtefactError
from ..files import whole
from .corpus import conversations
from .packing import Batch, steps_of_chunk
from .tokenizer import train_tokenizer
from .variants import VARIANTS, Variant
from .variants import variant as find_variant

_SAVE_EVERY = 240.0  # seconds between checkpoints
_TELL_EVERY = 120.0  # seconds between lines where no bar can be drawn
_TOKENIZER_TEXTS = 40_000


@dataclass(frozen=True, slots=True)
class Recipe:
    """The optimiser's settings, the same for every variant."""

    step_tokens: int = 6144
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    warmup: float = 0.01  # share of the training
    decay: float = 0.5  # share of the training over which the rate falls to zero
    weight_decay: float = 0.05


@dataclass
class Progressed:
    """How far a training is."""

    chunk: int = 0
    step: int = 0
    tokens: int = 0
    wall: float = 0.0
    cpu: float = 0.0
    loss: float = 0.0


def plain_attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor, **_: Any
) -> tuple[torch.Tensor, None]:
    """Attention written out in bfloat16: on a CPU three times as fast, for rows this short, as the fused kernel."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2) + attention_mask
    mixed = torch.softmax(scores, -1) @ value
    return mixed.transpose(1, 2).contiguous(), None


def build(variant: Variant, tokenizer: Any) -> Any:
    """The untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    size = variant.size
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.width,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        intermediate_size=size.inner,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        rms_norm_eps=1e-5,
        initializer_range=0.02,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(variant.seed)
    model = LlamaForCausalLM(config)
    ALL_ATTENTION_FUNCTIONS.register("pilot_plain", plain_attention)
    model.set_attn_implementation("pilot_plain")
    return model


def make_tokenizer(variant: Variant) -> Any:
    """The tokenizer, learned from the start of the variant's own stream."""

    def texts() -> Iterator[str]:
        stream = conversations(variant.lexicon, variant.seed)
        for _ in range(_TOKENIZER_TEXTS):
            item = next(stream)
            if isinstance(item, str):
                yield item
            else:
                yield "\n".join([*(m.content for m in item.messages), item.answer or ""])

    return train_tokenizer(texts(), variant.size.vocabulary, variant.size.context)


def loss_of(model: Any, batch: Batch) -> tuple[torch.Tensor, float]:
    """The weighted next-token loss of a packed batch, summed, and its weight. Documents do not see each other."""
    ids, which = torch.from_numpy(batch.ids), torch.from_numpy(batch.documents)
    weights = torch.from_numpy(batch.weights)
    same = which[:, :, None] == which[:, None, :]
    seen = same & torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool).tril()
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, float("-inf"))[:, None]
    with torch.autocast("cpu", torch.bfloat16):
        hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        spots = weights > 0
        logits = model.lm_head(hidden[spots])
    targets = ids.roll(-1, dims=1)[spots]
    losses = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    chosen = weights[spots]
    return (losses * chosen).sum(), float(chosen.sum())


def optimisers(model: Any, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for embeddings and norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=recipe.muon_lr, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(rest, lr=recipe.adam_lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def rate(done: float, recipe: Recipe) -> float:
    """The factor on the learning rates when a share of the training is done: warm-up, plateau, straight fall to zero."""
    if done < recipe.warmup:
        return done / recipe.warmup
    return min(1.0, max(0.0, (1 - done) / recipe.decay))


class Training:
    """One training: model, optimisers, progress, and the folder where its checkpoint lies."""

    def __init__(self, variant: Variant, out: Path, recipe: Recipe, tokens: int, threads: int = 1) -> None:
        self.variant, self.out, self.recipe, self.tokens = variant, out, recipe, tokens
        self.scratch = out / "unfinished"
        self.state = Progressed()
        self.scratch.mkdir(parents=True, exist_ok=True)
        self.tokenizer = self._tokenizer()
        self.model = build(variant, self.tokenizer)
        self.replicas = self._replicas(threads)
        self.optimisers = optimisers(self.model, recipe)
        self.base = [[float(g["lr"]) for g in o.param_groups] for o in self.optimisers]

    def _tokenizer(self) -> Any:
        from transformers import AutoTokenizer

        where = self.scratch / "tokenizer"
        if not where.is_dir():
            part = self.scratch / ".tokenizer.part"
            shutil.rmtree(part, ignore_errors=True)
            make_tokenizer(self.variant).save_pretrained(part)
            part.replace(where)
        return AutoTokenizer.from_pretrained(where)

    def _replicas(self, threads: int) -> list[Any]:
        """One model per thread: the same weights in the same memory, gradients of their own.

        Matrices this small leave a second core idle half of the time; two halves of a batch keep both busy.
        """
        replicas = [self.model]
        for _ in range(threads - 1):
            twin = build(self.variant, self.tokenizer)
            for mine, shared in zip(twin.parameters(), self.model.parameters(), strict=True):
                mine.data = shared.data
            replicas.append(twin)
        return replicas

    # ------------------------------------------------------------ checkpoints

    def _tensors(self) -> dict[str, torch.Tensor]:
        found = {f"model.{n}": p.detach() for n, p in self.model.named_parameters()}
        for k, optimiser in enumerate(self.optimisers):
            for i, row in optimiser.state_dict()["state"].items():
                found |= {f"optimiser.{k}.{i}.{name}": value for name, value in row.items()}
        return found

    def save(self) -> None:
        """Writes weights, optimiser state and progress beside, then renames: there is never half a checkpoint."""
        meta = {"progress": json.dumps(asdict(self.state)), "plan": json.dumps(self.plan())}
        with whole(self.scratch / "state.safetensors") as part:
            save_file({k: v.contiguous() for k, v in self._tensors().items()}, part, metadata=meta)

    def plan(self) -> dict[str, Any]:
        """What must not change between an interrupted training and its continuation."""
        return {"variant": self.variant.name, "seed": self.variant.seed, "tokens": self.tokens,
                "size": asdict(self.variant.size), "recipe": asdict(self.recipe)}  # fmt: skip

    def resume(self) -> bool:
        """Goes on from a checkpoint, if there is one. Raises `ArtefactError` for one of another training."""
        path = self.scratch / "state.safetensors"
        if not path.is_file():
            return False
        with safe_open(path, framework="pt") as file:
            meta = cast("dict[str, str]", file.metadata())
        if json.loads(meta["plan"]) != self.plan():
            raise ArtefactError(
                f"{path} is the checkpoint of another training ({meta['plan']}); expected {json.dumps(self.plan())}."
                " Continue with the same options, or remove that folder to begin anew."
            )
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        for k, optimiser in enumerate(self.optimisers):
            whole = optimiser.state_dict()
            state: dict[int, dict[str, torch.Tensor]] = {}
            for key, value in tensors.items():
                if key.startswith(f"optimiser.{k}."):
                    _, _, i, name = key.split(".", 3)
                    state.setdefault(int(i), {})[name] = value
            optimiser.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
        self.state = Progressed(**json.loads(meta["progress"]))
        return True

    # ------------------------------------------------------------ steps

    def step(self, batches: list[Batch]) -> None:
        """One optimiser step."""
        factor = rate(self.state.tokens / self.tokens, self.recipe)
        for optimiser, rates in zip(self.optimisers, self.base, strict=True):
            for group, base in zip(optimiser.param_groups, rates, strict=True):
                group["lr"] = base * factor
        total = sum(float(b.weights.sum()) for b in batches)
        shares = [[b.part(k, len(self.replicas)) for b in batches] for k in range(len(self.replicas))]
        with ThreadPoolExecutor(len(self.replicas)) as pool:
            loss = sum(pool.map(_gradients, self.replicas, shares, [total] * len(self.replicas)))
        for replica in self.replicas[1:]:
            for mine, theirs in zip(self.model.parameters(), replica.parameters(), strict=True):
                mine.grad = theirs.grad if mine.grad is None else mine.grad.add_(theirs.grad)
                theirs.grad = None
        self.state.tokens += sum(int((b.documents > 0).sum()) for b in batches)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        self.state.step += 1
        self.state.loss = loss if self.state.step == 1 else 0.98 * self.state.loss + 0.02 * loss

    def run(self, *, stop_after: int | None = None) -> None:
        """Trains to the end, or for some chunks more. A checkpoint is written every few minutes."""
        started = saved = told = time.time()
        cpu, before, first = _cpu_seconds(), (self.state.wall, self.state.cpu), self.state.tokens
        last = None if stop_after is None else self.state.chunk + stop_after
        with progress.task(f"training {self.variant.name} (thousand tokens)", self.tokens // 1000) as bar:
            bar.advance(first // 1000)
            while self.state.tokens < self.tokens and self.state.chunk != last:
                for batches in steps_of_chunk(self.tokenizer, self.variant, self.state.chunk, self.recipe.step_tokens):
                    done = self.state.tokens // 1000
                    self.step(batches)
                    bar.advance(self.state.tokens // 1000 - done)
                    bar.tell(f"step {self.state.step}, loss {self.state.loss:.3f}")
                self.state.chunk += 1
                self.state.wall = before[0] + time.time() - started
                self.state.cpu = before[1] + _cpu_seconds() - cpu
                if time.time() - saved > _SAVE_EVERY:
                    self.save()
                    saved = time.time()
                if time.time() - told > _TELL_EVERY and not sys.stderr.isatty():
                    told = time.time()
                    speed = (self.state.tokens - first) / (told - started)
                    left = (self.tokens - self.state.tokens) / speed / 60
                    sys.stderr.write(f"{self.state.tokens / 1e6:.2f} of {self.tokens / 1e6:.0f} million tokens,"
                                     f" loss {self.state.loss:.3f}, about {left:.0f} minutes left\n")  # fmt: skip
                    sys.stderr.flush()
        self.save()

    def finish(self) -> None:
        """Writes the finished model into its folder: bfloat16 weights, tokenizer, chat template, how it was trained."""
        part = self.out / ".finished.part"
        shutil.rmtree(part, ignore_errors=True)
        plain = build(self.variant, self.tokenizer)
        plain.load_state_dict(self.model.state_dict())
        plain.set_attn_implementation("sdpa")
        plain.generation_config.eos_token_id = self.tokenizer.eos_token_id
        plain.generation_config.pad_token_id = self.tokenizer.pad_token_id
        plain.to(torch.bfloat16).save_pretrained(part)
        self.tokenizer.save_pretrained(part)
        report = {**self.plan(), **asdict(self.state), "load": os.getloadavg(), "threads": len(self.replicas),
                  "torch": torch.__version__, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}  # fmt: skip
        report["tokens"] = self.state.tokens
        (part / "training.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        for file in part.iterdir():
            file.replace(self.out / file.name)
        part.rmdir()


def _gradients(model: Any, batches: list[Batch], total: float) -> float:
    """Adds the gradients of some rows to one replica; their share of the loss."""
    torch.set_num_threads(1)
    loss = 0.0
    for batch in batches:
        if len(batch.ids):
            scaled = loss_of(model, batch)[0] / total
            scaled.backward()
            loss += scaled.item()
    return loss


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def train(
    variant: str = "pilot",
    out: Path | None = None,
    *,
    tokens: int | None = None,
    threads: int | None = None,
    stop_after: int | None = None,
) -> Progressed:
    """Trains a variant, or goes on with it, and writes the model into its folder.

    `stop_after` ends this call after so many chunks with a checkpoint and a preliminary model, to be gone on with.
    """
    chosen = find_variant(variant)
    training = Training(
        chosen, out or chosen.folder, Recipe(), tokens or chosen.tokens, threads or min(2, os.cpu_count() or 1)
    )
    training.resume()
    training.run(stop_after=stop_after)
    training.finish()
    if training.state.tokens >= training.tokens:
        shutil.rmtree(training.scratch)
    return training.state


def main(
    variant: str = "pilot",
    out: Path | None = None,
    *,
    tokens: int | None = None,
    threads: int | None = None,
    stop_after: int | None = None,
) -> None:
    """Trains a variant and says what it took."""
    state = train(variant, out, tokens=tokens, threads=threads, stop_after=stop_after)
    sys.stderr.write(f"{out or find_variant(variant).folder}: {state.tokens / 1e6:.1f} million tokens, loss"
                     f" {state.loss:.3f}, {state.wall / 60:.1f} min wall, {state.cpu / 60:.1f} min CPU\n")  # fmt: skip


def _command_line() -> None:
    parser = argparse.ArgumentParser(prog="python -m steerlab.pilot.train", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--variant", default="pilot", choices=list(VARIANTS))
    parser.add_argument("--out", type=Path, default=None, help="folder for the model; the variant's own unless given")
    parser.add_argument(
        "--tokens", type=int, default=None, help="length of the training; the variant's own unless given"
    )
    parser.add_argument("--threads", type=int, default=None, help="CPU threads; two unless given")
    parser.add_argument("--stop-after", type=int, default=None, help="chunks to train before stopping, to go on later")
    given = parser.parse_args()
    with progress.shown():
        main(given.variant, given.out, tokens=given.tokens, threads=given.threads, stop_after=given.stop_after)


if __name__ == "__main__":
    _command_line()
