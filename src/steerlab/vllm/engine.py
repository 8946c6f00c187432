"""vLLM behind `steerlab serve`: the same requests, answers and checks, with vLLM's scheduler and kernels under them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..controls import Gate
from ..engines.base import Piece, Reply, Sampling
from ..engines.grammar import Grammar
from ..engines.hf_generate import Row, add, piece, reply
from ..engines.hf_hooks import Tally
from ..engines.hf_serving import Ask
from ..engines.readout import readouts
from ..engines.render import Renderer, Template
from ..engines.sampling import check
from ..errors import ConfigError, DataError, UnsupportedError
from ..steering import Steering
from .admission import Admission
from .batch import rows_of
from .plugin import admission, register
from .rows import refused
from .settings import KEY


@dataclass(eq=False)
class VLLMEngine:
    """A model in vLLM, and what a server asks of an engine. `core` is vLLM's `LLMEngine`."""

    core: Any
    name: str
    tokenizer: Any
    renderer: Renderer
    context: int

    @classmethod
    def load(
        cls,
        model: str,
        steerings: Sequence[Path] = (),
        *,
        label: str | None = None,
        revision: str | None = None,
        dtype: str = "auto",
        template: Template = "chat",
        rows: int = 64,
        options: Mapping[str, Any] | None = None,
    ) -> VLLMEngine:
        """A model by its name on the hub or its folder; `options` are vLLM's own arguments.

        Tables are as large as what these files need, twice over, unless `options` say otherwise (under `additional_config`).
        Raises `ConfigError` where vLLM isn't installed or doesn't take an option, `UnsupportedError` where the canary dies.
        """
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        os.environ.setdefault(
            "VLLM_CPU_KVCACHE_SPACE", "4"
        )  # GiB; without it vLLM wants nearly all memory where there is no GPU
        try:
            vllm: Any = importlib.import_module("vllm")
        except ImportError as problem:
            raise ConfigError(
                f"vLLM can't be imported here ({problem}); install steerlab[vllm], or on a machine without a GPU run"
                " `tools/vllm VENV` and use that environment."
            ) from problem
        register()
        given = dict(options or {})
        extra = dict(given.pop("additional_config", None) or {})
        extra[KEY] = {**_sizes(steerings), **(extra.get(KEY) or {})}
        given = {
            "max_num_seqs": rows,
            "dtype": dtype,
            "revision": revision,
            **given,
            "model": model,
            "additional_config": extra,
        }
        try:
            arguments = vllm.EngineArgs(**given)
        except TypeError as problem:
            raise ConfigError(f"vLLM doesn't take these options: {problem}.") from problem
        core = vllm.LLMEngine.from_engine_args(arguments)
        config = core.vllm_config
        from transformers import AutoTokenizer

        tokenizer: Any = AutoTokenizer.from_pretrained(model, revision=revision)
        renderer = Renderer(tokenizer, template, _ends(model, revision, tokenizer))
        return cls(core, label or model, tokenizer, renderer, int(config.model_config.max_model_len))

    @property
    def admission(self) -> Admission:
        """What reads its requests."""
        return admission(self.core.input_processor)

    @property
    def fingerprint(self) -> dict[str, Any] | None:
        """What tells its model from others; None where its files can't be read."""
        return self.admission.model.fingerprint

    @property
    def template(self) -> str:
        """SHA-256 of the chat template, or "plain"."""
        return self.admission.model.template

    def refuses(self, steering: Steering) -> list[str]:
        """Why it would not run a steering exactly, in words."""
        return self.admission.refuses(steering)

    def accept(self, steering: Steering) -> None:
        """Make a steering known. Raises `UnsupportedError` with every reason for which it is refused."""
        if reasons := self.refuses(steering):
            raise UnsupportedError(f"{self.name} in vLLM refuses this steering: " + "; ".join(reasons) + ".")
        self.admission.keep(steering)

    def running(self) -> Running:
        """What a server's thread drives."""
        return Running(self)

    def stop(self) -> None:
        """End its processes."""
        self.core.engine_core.shutdown()


class Running:
    """The replies that are being decoded: as `engines.hf_serving.Running`, by vLLM."""

    def __init__(self, engine: VLLMEngine) -> None:
        self._engine, self._count = engine, 0
        self._rows: dict[str, Row] = {}
        self._read: dict[str, list[Any]] = {}  # read-outs, which may run ahead of tokens
        self._gates: dict[int, list[dict[str, Any]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def check(self, ask: Ask) -> None:
        """Raise what makes it impossible here: unsteered spans, a prompt that leaves no room, what the tables don't hold."""
        if ask.unsteered:
            raise UnsupportedError(
                "unsteered spans aren't built for vLLM; leave `unsteered` out, or serve with --engine hf."
            )
        self._check_drawn(ask.sampling)
        if len(ask.prompt.ids) >= self._engine.context:
            raise DataError(
                f"the prompt is {len(ask.prompt.ids)} tokens long, and the model's context holds {self._engine.context}; expected"
                " room for at least one token of reply. Shorten the prompt."
            )
        if (extra := self._extra(ask)) is not None:
            self._engine.admission.resolve(extra[KEY], ask.prompt.ids)

    def _check_drawn(self, sampling: Sampling) -> None:
        form = sampling.grammar
        check(replace(sampling, grammar=None), self._engine.renderer)
        if form is not None and (form.kind == "lark" or form.after):
            raise UnsupportedError(
                "this form of a reply (certain or strict calls of tools, or after thinking) isn't built for vLLM; ask for"
                " response_format without thinking, or serve with --engine hf."
            )
        if sampling.repetition_penalty > 2 or max(abs(sampling.presence_penalty), abs(sampling.frequency_penalty)) > 2:
            raise UnsupportedError("vLLM takes penalties from -2 to 2, and a repetition_penalty up to 2.")

    def admit(self, asks: Sequence[Ask]) -> list[Row]:
        """Take replies in. They have their first token once it is made: until then a row is empty."""
        rows: list[Row] = []
        for n, ask in enumerate(asks):
            row = self._row(n, ask)
            self._count += 1
            name = f"steerlab-{self._count}"
            self._engine.core.add_request(name, {"prompt_token_ids": list(ask.prompt.ids)}, self._params(ask, row))
            self._rows[name] = row
            rows.append(row)
        return rows

    def step(self) -> list[Row]:
        """One step of vLLM's; the rows that have got something."""
        moved: list[Row] = []
        for output in self._engine.core.step():
            row = self._rows.get(output.request_id)
            if row is None or row.finish is not None:
                continue
            self._hear(output.request_id, row, (output.kv_transfer_params or {}).get(KEY) or {})
            self._note(output.request_id, row, output.outputs[0])
            moved.append(row)
        self._tidy()
        return moved

    def drop(self, rows: Sequence[Row]) -> None:
        """These leave before the next step."""
        for row in rows:
            row.finish = row.finish or "stop"
            self._gates.pop(id(row), None)
        self._tidy()

    def clear(self) -> None:
        """All leave."""
        self.drop(list(self._rows.values()))
        self._gates.clear()

    def decisions(self, row: Row) -> dict[int, Tally]:
        """What each of a row's gates has done, by the control's id; asked before the row leaves."""
        if row.steering is None:
            return {}
        acting = [i.control for i in row.steering.interventions if i.control.most != (0.0, 0.0)]
        behind = [control for control in acting if isinstance(control, Gate)]
        told = self._gates.get(id(row), [])
        return {
            id(control): Tally(one["tokens"], one["acted"], one["strength"])
            for control, one in zip(behind, told, strict=False)
        }

    def reply(self, row: Row) -> Reply:
        """What a row has said."""
        return reply(row, self._engine.renderer)

    def piece(self, row: Row) -> Piece | None:
        """What is new and certain of it."""
        return piece(row, self._engine.renderer)

    def _tidy(self) -> None:
        over = [name for name, row in self._rows.items() if row.finish is not None]
        for name in over:
            del self._rows[name]
            self._read.pop(name, None)
        if over:
            self._engine.core.abort_request(over)

    def _row(self, n: int, ask: Ask) -> Row:
        room = self._engine.context - len(ask.prompt.ids)
        limit, unused = min(ask.sampling.max_new_tokens, room), torch.Generator()  # vLLM draws by itself
        return Row(n, ask.prompt, ask.steering, unused, limit, ask.sampling, tops=ask.tops, readouts=ask.readouts)

    def _hear(self, name: str, row: Row, told: Mapping[str, Any]) -> None:
        """What the engine tells beside tokens."""
        if read := told.get("readouts"):
            for values in zip(*read.values(), strict=True):
                flat = [v for value in values for v in (value if isinstance(value, list) else [value])]
                self._read.setdefault(name, []).append(tuple(float("nan") if v is None else float(v) for v in flat))
        if "gates" in told:
            self._gates[id(row)] = told["gates"]

    def _note(self, name: str, row: Row, output: Any) -> None:
        """The tokens that are new in an output, which holds all so far."""
        read = self._read.get(name, [])
        for token, told in list(zip(output.token_ids, output.logprobs, strict=True))[len(row.ids) :]:
            if row.finish is not None:
                return
            if row.tops:
                best = sorted(told.items(), key=lambda item: item[1].rank)[: row.tops]
                row.likeliest.append([(int(one), float(found.logprob)) for one, found in best])
            if row.readouts:
                if len(read) <= len(row.ids):
                    raise UnsupportedError(
                        "vLLM's engine gave a token without its read-outs; it isn't told as if there were none."
                    )
                row.readings.append(read[len(row.ids)])
            add(row, int(token), float(told[token].logprob), self._engine.renderer)

    def _params(self, ask: Ask, row: Row) -> Any:
        vllm: Any = importlib.import_module("vllm")
        drawn = ask.sampling
        return vllm.SamplingParams(
            max_tokens=row.limit, logprobs=ask.tops, ignore_eos=True,
            stop_token_ids=list(drawn.ends(self._engine.renderer.ends)), detokenize=False, extra_args=self._extra(ask),
            **_drawn(drawn),
        )  # fmt: skip

    def _extra(self, ask: Ask) -> dict[str, Any] | None:
        steered = ask.steering is not None and bool(ask.steering.interventions)
        if not steered and not ask.monitors:
            return None
        terms: list[dict[str, Any]] = []
        if steered and ask.steering is not None:
            parts = ask.parts or ((self._engine.admission.keep(ask.steering), 1.0, None),)
            terms = [{"name": d, "strength": s, **({} if p is None else {"positions": p})} for d, s, p in parts]
        read = {"readouts": list(ask.monitors), "each": True}
        return {KEY: {"steering": terms, "head": ask.prompt.head, "prompted": True, **read}}


def _drawn(sampling: Sampling) -> dict[str, Any]:
    """How it is drawn, in vLLM's words: what isn't asked for isn't said."""
    shaped = {
        "repetition_penalty": (sampling.repetition_penalty, 1.0), "presence_penalty": (sampling.presence_penalty, 0.0),
        "frequency_penalty": (sampling.frequency_penalty, 0.0), "logit_bias": (dict(sampling.bias), {}),
        "min_tokens": (sampling.min_new_tokens, 0), "structured_outputs": (_form(sampling.grammar), None),
    }  # fmt: skip
    told: dict[str, Any] = {name: value for name, (value, usual) in shaped.items() if value != usual}
    if sampling.temperature == 0:
        return {"temperature": 0.0, **told}
    return {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": sampling.seeds(1)[0], **told,
            **({"min_p": sampling.min_p} if sampling.min_p else {}),
            **({} if sampling.top_k is None else {"top_k": sampling.top_k})}  # fmt: skip


def _form(grammar: Grammar | None) -> Any:
    if grammar is None:
        return None
    made: Any = importlib.import_module("vllm.sampling_params")
    return made.StructuredOutputsParams(**{grammar.kind: grammar.text})


def _sizes(files: Sequence[Path]) -> dict[str, Any]:
    """The tables that these steerings need, two of the largest at once; one of them is read at a time."""
    rank, diag, gates, reads = 1, False, False, 0
    for path in files:
        steering = Steering.load(path)
        needs = needed(steering.interventions)
        rank, diag = max(rank, needs[0]), diag or needs[1]
        gates = gates or any(isinstance(i.control, Gate) and refused(i) is None for i in steering.interventions)
        with contextlib.suppress(UnsupportedError):  # an edit without an axis
            at = [read.site for read in readouts(steering) if read.site.part == "resid"]
            reads = max([reads, *(at.count(site) for site in at)])
    return {"rank": min(2 * rank, 64), "diag": diag, "gates": gates, "reads": min(reads, 64)}


def needed(interventions: Iterable[Any]) -> tuple[int, bool]:
    """The lines that they take at one block at most, and whether they scale; what can't be served needs nothing."""
    acting = [i for i in interventions if refused(i) is None]
    rows = rows_of(acting).values()
    return max((len(row.lines) for row in rows), default=0), any(row.diag is not None for row in rows)


def _ends(model: str, revision: str | None, tokenizer: Any) -> list[int]:
    """The ids that end a reply: those of the generation config, and the tokenizer's own."""
    from transformers import GenerationConfig

    ends: list[int] = []
    try:
        config: Any = GenerationConfig
        found: Any = config.from_pretrained(model, revision=revision).eos_token_id
    except OSError:
        found = None
    for given in (found, tokenizer.eos_token_id):
        if isinstance(given, int):
            ends.append(given)
        elif isinstance(given, (list, tuple)):
            ends.extend(int(one) for one in given)
    return list(dict.fromkeys(ends))


def read_options(text: str | None) -> dict[str, Any]:
    """vLLM's own arguments as a JSON object. Raises `ConfigError`."""
    try:
        found = json.loads(text or "{}")
    except ValueError as problem:
        raise ConfigError(f"the engine's options aren't valid JSON: {problem}.") from problem
    if not isinstance(found, dict):
        raise ConfigError('the engine\'s options are no JSON object; expected one such as {"max_model_len": 4096}.')
    return {str(name): value for name, value in found.items()}
