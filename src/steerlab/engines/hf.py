"""The Hugging Face engine: any causal model of transformers 5, loaded by name or already in memory.

It owns nothing of the model: hooks stand only for the length of a call, the model's mode, gradients and dtype are left
as they were. Edits are computed in float32 and cast back to the model's dtype.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

from .. import progress
from ..contrast import Example
from ..controls import Tokens
from ..errors import ConfigError, DataError, SiteError, UnsupportedError
from ..positions import LAST_PROMPT, Positions
from ..sites import Site
from ..steering import Steering
from . import packing
from .base import (
    Batch,
    Captured,
    Conversation,
    EditFunction,
    Piece,
    Reply,
    Run,
    Sampling,
    Shape,
    Start,
    Steerings,
    Trainable,
    as_example,
    finite,
    rows_of,
)
from .head import Head
from .hf_follow import Follower
from .hf_generate import Decoder, Row, piece, reply, sound
from .hf_hooks import Hooks, Plan, refuse_compiled
from .hf_model import ends, identity, loaded, pad_id, shape, sizes_of, sketch, text_config
from .hf_offload import home
from .hf_pass import Passes, without_gradients
from .hf_quantize import Quantize, precision, quantisation
from .hf_refuse import refused, without_prompts
from .hf_rows import Padding, decoding, item, padded
from .hf_sites import Anatomy
from .hf_trial import Trial
from .render import Renderer, Rendering, Template

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .hf_serving import Running


class HFEngine(Trainable):
    """Runs a transformers causal model under steerings, and shows its inside.

    `template` is "chat" (the tokenizer's own) or, for base models and only when asked for, "plain". `batch_size` rows
    run at once; `rendering` is a system message, thinking, or texts that are rendered already;
    `chunk` reads long prompts in pieces of so many tokens. `padding` is the side for scoring and capturing
    (replies are always decoded left-padded). Raises `UnsupportedError` for a model compiled by torch.compile.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        template: Template = "chat",
        batch_size: int = 32,
        chunk: int | None = None,
        padding: Padding = "right",
        name: str | None = None,
        rendering: Rendering = Rendering(),  # noqa: B008  (immutable)
    ) -> None:
        if batch_size < 1 or (chunk is not None and chunk < 1):
            raise ConfigError(f"batch_size is {batch_size} and chunk {chunk}; expected at least 1.")
        if padding not in ("left", "right"):
            raise ConfigError(f"padding is {padding!r}; expected 'left' or 'right'.")
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.chunk = batch_size, chunk
        self.padding: Padding = padding
        self.name = name or str(getattr(model.config, "_name_or_path", "") or type(model).__name__)
        self._check_compiled()
        self.anatomy = Anatomy(model, model.config)
        self.renderer = Renderer(
            tokenizer, template, ends(model, tokenizer), rendering=rendering, embedded=self.anatomy.vocabulary
        )
        self._passes = Passes(model, self.anatomy)
        self.trial = Trial(model, self.anatomy, self.renderer)
        self._fingerprint: dict[str, Any] | None = None

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        dtype: str = "auto",
        device: str | None = None,
        quantize: Quantize | None = None,
        template: Template = "chat",
        batch_size: int = 32,
        label: str | None = None,
        rendering: Rendering = Rendering(),  # noqa: B008  (immutable)
    ) -> Self:
        """A model by its name on the hub or its folder, in evaluation mode (`steerlab.load` knows the built-in ones).

        `label` is what the engine calls it. `device` is cpu, cuda, …, or a device map of accelerate's that spreads it over
        what there is: auto, balanced, balanced_low_0 or sequential. `quantize` is 4bit or 8bit, by bitsandbytes (extra
        `quantize`): the blocks' matrices, while the rest stays in the dtype. Raises `ArtefactError` where it can't be loaded,
        `ConfigError` for a device that doesn't exist, and where bitsandbytes isn't installed.
        """
        model, tokenizer = loaded(name, revision=revision, dtype=precision(dtype, quantize), device=device)
        return cls(
            model.eval(), tokenizer, template=template, batch_size=batch_size, name=label or name, rendering=rendering
        )

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def depth(self) -> int:
        return self.anatomy.depth

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        return home(self.model)

    @property
    def context(self) -> int:
        """Tokens that fit: the model's trained context."""
        config = text_config(self.model)
        given = getattr(config, "max_position_embeddings", None) or getattr(self.tokenizer, "model_max_length", None)
        return int(given) - self.anatomy.first_place if given and given < 2**30 else 2**30

    @property
    def identity(self) -> str:
        return identity(self.model, self.template)

    @property
    def head(self) -> Head | None:
        return self._passes.head

    @property
    def shares(self) -> int:
        return self._passes.shares(self.context)

    def width(self, site: Site) -> int:
        return self.anatomy.matrix(site).width if site.on_weights else self.anatomy.point(site).width

    def matrices(self, layer: int = 0) -> dict[Site, Shape]:
        found = self.anatomy.matrices(layer)
        return {Site(layer, f"w:{name}"): Shape(m.height, m.width, m.reads) for name, m in found.items()}

    def sites(self, layer: int = 0) -> tuple[Site, ...]:
        bare = ("embed", "final")
        parts = [p for p in self.anatomy.parts(layer) if p != "logits"]
        return tuple(Site(None if p in bare else layer, p) for p in parts)

    @property
    def fingerprint(self) -> dict[str, Any]:
        if self._fingerprint is None:
            self._fingerprint = {
                "shape": shape(self.model),
                "sizes": sizes_of(text_config(self.model)),
                "sketch": sketch(self.model, self.anatomy),
            }
            if (how := quantisation(self.model)) is not None:
                self._fingerprint["quantised"] = how
        return self._fingerprint

    @property
    def revision(self) -> str | None:
        """The hub commit that it was loaded from, where there is one."""
        return getattr(self.model.config, "_commit_hash", None)

    @property
    def versions(self) -> dict[str, str]:
        import transformers

        return {**super().versions, "transformers": str(transformers.__version__)}

    @property
    def template(self) -> str:
        return self.renderer.digest

    @property
    def rendering(self) -> dict[str, Any]:
        return self.renderer.rendering.to_json()

    def refuses(self, steering: Steering) -> list[str]:
        return [*refuse_compiled(self.model), *refused(self, steering)]

    def running(self) -> Running:
        """The replies of a server, decoded in one batch that goes on."""
        from .hf_serving import Running

        return Running(self)

    # --- running ------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompts: Sequence[Conversation],
        steerings: Steerings = None,
        sampling: Sampling = Sampling(),  # noqa: B008
    ) -> list[Reply]:
        rows = self._rows(prompts, steerings, sampling)
        with progress.task("generating", len(rows)) as bar:
            for batch in self.trial.batches(rows, self.batch_size):
                for moved in self._steps(batch):
                    bar.advance(sum(row.finish is not None for row in moved))
        return [reply(row, self.renderer) for row in rows]

    def stream(
        self,
        prompts: Sequence[Conversation],
        steerings: Steerings = None,
        sampling: Sampling = Sampling(),  # noqa: B008
    ) -> Iterator[Piece]:
        rows = self._rows(prompts, steerings, sampling)
        for batch in self.trial.batches(rows, self.batch_size):
            for moved in self._steps(batch):
                yield from (p for row in moved if (p := piece(row, self.renderer)) is not None)

    def logprobs(self, examples: Sequence[Example], steerings: Steerings = None) -> list[Tensor]:
        found: list[Tensor] = []
        for example, scores in zip(examples, self.logits(examples, steerings), strict=True):
            answer = [] if example.answer is None else self.renderer.answer(example.answer)
            targets = torch.tensor(answer, dtype=torch.long)
            found.append(torch.log_softmax(scores, dim=-1).gather(1, targets[:, None])[:, 0])
        return found

    def logits(self, examples: Sequence[Example], steerings: Steerings = None) -> Iterator[Tensor]:
        each = self._decided(examples, self._accepted(steerings, len(examples)))
        for start in range(0, len(examples), self.batch_size):
            part, under = examples[start : start + self.batch_size], each[start : start + self.batch_size]
            batch = self.batch(part, under)
            with torch.no_grad():
                run = self._passes.run(batch, Hooks(self.anatomy, Plan(under)), logits=True)
            assert run.logits is not None
            yield from sound(run.logits, under).cpu().split(batch.predicts.sum(dim=1).tolist())

    def text_logprobs(self, texts: Sequence[str], steerings: Steerings = None) -> list[Tensor]:
        each = self._accepted(steerings, len(texts))
        without_prompts(each, "a text has no conversation to put it into, or to decide by")
        whole = [self.renderer.text_ids(text)[: self.context] for text in texts]
        if any(len(ids) < 2 for ids in whole):
            raise DataError("a text has fewer than two tokens, so nothing in it is predicted; leave empty texts out.")
        found: list[Tensor] = []
        for start in range(0, len(texts), self.batch_size):
            part, under = whole[start : start + self.batch_size], each[start : start + self.batch_size]
            heads = [int(ids[0] == self.renderer.begin) for ids in part]
            batch = self._padded(part, [1] * len(part), heads)
            with torch.no_grad():
                run = self._passes.run(batch, Hooks(self.anatomy, Plan(under)), logits=True)
            assert run.logits is not None
            targets = torch.roll(batch.ids, -1, dims=1)[batch.predicts]
            picked = torch.log_softmax(sound(run.logits, under), dim=-1).gather(1, targets[:, None])[:, 0].cpu()
            found.extend(picked.split(batch.predicts.sum(dim=1).tolist()))
        return found

    def capture(
        self,
        examples: Sequence[Example],
        sites: Sequence[Site],
        positions: Positions = LAST_PROMPT,
        steerings: Steerings = None,
    ) -> dict[Site, Captured]:
        if not examples:
            raise DataError("there are no examples to capture activations of.")
        each, sites = self._decided(examples, self._accepted(steerings, len(examples))), list(dict.fromkeys(sites))
        parts: dict[Site, list[Tensor]] = {site: [] for site in sites}
        rows: list[Tensor] = []
        places: list[Tensor] = []
        with progress.task("reading activations", len(examples)) as bar, torch.no_grad():
            items = [item(self.renderer, self.context, e, s) for e, s in zip(examples, each, strict=True)]
            alike = len({item.prompt for item in items}) < len(items)
            alone = any(s is not None for s in each) or not (alike and self.shares)
            arranged = packing.rows(items, longest=0 if alone else self.shares, share=not alone)
            for part in packing.batches(arranged, self.batch_size, packing.price(self.device.type)):
                batch, here = packing.packed(
                    items, part, left=self.trial.side(self.padding, (r.length for r in part)) == "left"
                )
                batch = batch.to(self.device)
                under = [each[p.example] for p in here] if alone else [None] * len(batch.ids)
                mask = batch.mask(positions)
                hooks = Hooks(self.anatomy, Plan(under), collect=sites, only_collect=True)
                run, mask = self._passes.run(batch, hooks, logits=False, read=mask), mask.cpu()
                owner, row, column = packing.tokens(here)
                chosen = mask[row, column]
                row, column = row[chosen], column[chosen]
                for site in sites:
                    read = run.at[site]
                    parts[site].append(
                        finite(read[row.to(read.device), column.to(read.device)].float().cpu(), str(site))
                    )
                rows.append(owner[chosen])
                places.append(batch.position.cpu()[row, column])
                bar.advance(len(here))
        row, place = torch.cat(rows), torch.cat(places)
        order = torch.argsort(row, stable=True)
        return {site: Captured(torch.cat(parts[site])[order], row[order], place[order]) for site in sites}

    def batch(
        self,
        examples: Sequence[Example],
        steerings: Steerings = None,
        *,
        close: bool = True,
        answer_tokens: int | None = None,
    ) -> Batch:
        each = rows_of(steerings, len(examples))
        items = [
            item(self.renderer, self.context, e, s, n, close=close, cut=answer_tokens)
            for n, (e, s) in enumerate(zip(examples, each, strict=True))
        ]
        whole = [[*item.prompt, *item.answer] for item in items]
        return self._padded(whole, [len(item.prompt) for item in items], [item.head for item in items])

    def resume(
        self,
        batch: Batch,
        edits: Mapping[Site, EditFunction] | None = None,
        *,
        sites: Sequence[Site] = (),
        logits: bool = True,
        start: Start | None = None,
        hidden: bool = False,
    ) -> Run:
        self._check_compiled()
        plan, ends = Plan([None] * len(batch.ids)), not (logits or hidden)
        hooks = Hooks(self.anatomy, plan, edits=edits, collect=sites, only_collect=ends)
        if start is not None:
            first = Site(start.layer, "resid")
            below = [s for s in (*(edits or ()), *sites) if s.reached < first.reached]
            if below:
                raise SiteError(
                    f"the pass begins with the output of block {start.layer}, and {below[0]} lies below it."
                )
        with without_gradients(self.model):
            return self._passes.run(batch, hooks, logits=logits and not hidden, start=start, hidden=hidden)

    @contextmanager
    def steer(self, steerings: Steerings) -> Generator[None]:
        """Steer the caller's own calls of the model (`model(...)`, `model.generate(...)`) inside a `with` block.

        Positions are told from each call's attention mask and cache: what the first call on an empty cache reads is the
        prompt, what follows is generated. One steering fits any batch; a list must have one entry per row. Static caches and
        `inputs_embeds` are taken (without ids, the template's head can't be told: positions that leave it alone are refused).

        Where prompt and generated tokens go by one rule (positions `all` or `not_template`, constant strengths or gates that
        decide at each token), a call may bring any of them: assisted decoding, prompt lookup, a prompt in pieces, a cache that
        calls under the same steering filled (here or in an earlier block), or none. Raises `UnsupportedError` inside the call
        for what can't be told, and for a cache that was filled otherwise; one that was cropped, reset or reordered outside and
        brought back to its length isn't told from one that wasn't.
        """
        one = steerings is None or isinstance(steerings, Steering)
        each = self._accepted(steerings, 1 if one else len(cast("Sequence[Steering | None]", steerings)))
        without_prompts(each, "your own calls bring tokens; put the text into their messages, or use generate")
        with Follower(self.model, self.anatomy, self.renderer, steerings).following():
            yield

    @contextmanager
    def steer_batch(self, batch: Batch, steerings: Steerings) -> Generator[None]:
        """Steer one forward pass of the caller's whose rows `batch` describes: padding, and where each prompt ends.

        For callers that know better than a mask does: a pass over prompt and answer at once, padded on the right.
        """
        each = self._accepted(steerings, len(batch.ids))
        without_prompts(each, "your own calls bring tokens; put the text into their messages, or use generate")
        hooks = Hooks(self.anatomy, Plan(each))
        hooks.tokens, hooks.head = Tokens(batch.ids, batch.position, batch.prompt_length), batch.head
        with hooks.attached():
            yield

    def decoder(self, rows: Sequence[Row], *, joinable: bool = False) -> Decoder:
        """One batch of replies in the making, of rows that may decode together."""
        return Decoder(
            self.model,
            self.anatomy,
            self.renderer,
            rows,
            chunk=self.trial.chunk(self.chunk),
            pad=self.pad,
            joinable=joinable,
            own_cache=self.trial.own_cache,
        )

    # --- inside -------------------------------------------------------------------------------------------------------

    @property
    def pad(self) -> int:
        """The id that padding is written with."""
        return pad_id(self.tokenizer.pad_token_id, self.renderer.ends, self.anatomy.vocabulary)

    def _check_compiled(self) -> None:
        if reasons := refuse_compiled(self.model):
            raise UnsupportedError(reasons[0] + ".")

    def _accepted(self, steerings: Steerings, rows: int) -> list[Steering | None]:
        self._check_compiled()
        self.trial.check()
        each = rows_of(steerings, rows)
        for steering in {id(s): s for s in each if s is not None}.values():
            self.accept(steering)
        return each

    def _decided(self, examples: Sequence[Example], each: Sequence[Steering | None]) -> list[Steering | None]:
        """Controls that decide ahead, decided: by a pass of the untouched prompts of those rows that have any."""
        waiting = [n for n, s in enumerate(each) if s is not None and s.ahead]
        if not waiting:
            return list(each)
        found, steerings = list(each), [cast("Steering", each[n]) for n in waiting]
        asked: list[Example] = []
        for n, s in zip(waiting, steerings, strict=True):
            bare = examples[n].without_answer()
            asked.append(bare if s.prompt is None else replace(bare, messages=s.prompt.apply(bare.messages)))
        sites = list(dict.fromkeys(control.site for s in steerings for control in s.ahead))
        read = self.capture(asked, sites, LAST_PROMPT)
        for k, (n, s) in enumerate(zip(waiting, steerings, strict=True)):
            found[n] = s.decided(lambda site, k=k: read[site].values[k])
        return found

    def _rows(self, prompts: Sequence[Conversation], steerings: Steerings, sampling: Sampling) -> list[Row]:
        each = self._decided([as_example(p) for p in prompts], self._accepted(steerings, len(prompts)))
        return decoding(self.renderer, self.context, prompts, each, sampling)

    def _padded(self, whole: Sequence[Sequence[int]], prompts: Sequence[int], heads: Sequence[int]) -> Batch:
        side = self.trial.side(self.padding, map(len, whole))
        return padded(whole, prompts, heads, pad=self.pad, padding=side).to(self.device)

    def _steps(self, rows: list[Row]) -> Iterator[list[Row]]:
        return self.decoder(rows).steps()
