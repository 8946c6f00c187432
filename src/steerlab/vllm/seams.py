"""Where vLLM's runners tell which requests' tokens lie where: the V1 and the V2 model runner behind one interface.

Both lay requests one after another into one flat batch, in an order of the runner's own (never the scheduler's), and know how
many tokens of each were computed before. That order is final only once a step's inputs are prepared, and that is where we look:

| runner | after | order | computed | what the request asked |
|---|---|---|---|---|
| V1 | `_prepare_inputs` | `input_batch.req_ids` | `input_batch.num_computed_tokens_cpu` | `requests[id].sampling_params` |
| V2 | `model_state.prepare_inputs` | `input_batch.req_ids` | `input_batch.num_computed_tokens_np` | `add_request(…, data)` |

Whether a runner has what is needed is looked up, not guessed by version; one that lacks it can't be steered, and the engine
doesn't start.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import UnsupportedError
from .admission import Asked, Files, asked
from .batch import Filler, Plan, Span

KEPT = 4096  # plans that are remembered
Counts = np.ndarray[tuple[int], np.dtype[Any]]


class Planner:
    """Finds the plan of a request from what it carries; requests that ask for the same share one."""

    def __init__(self, files: Files) -> None:
        self._files = files
        self._plans: OrderedDict[tuple[str, int, int], Plan] = OrderedDict()

    def plan(self, extra: Mapping[str, Any] | None, prompt_length: int) -> Plan | None:
        """None for a request that asks for nothing. Raises `SteerlabError` for one that isn't to be served."""
        given = asked(extra)
        if given is None:
            return None
        found = Asked.from_json(given)
        key = (found.rows, found.head, prompt_length)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        reads = self._files.reads(digest for digest, _ in found.reads)
        plan = Plan.of(found.rows, self._files.acting(found.parts), prompt_length, found.head, reads)
        self._plans[key] = plan
        if len(self._plans) > KEPT:
            self._plans.popitem(last=False)
        return plan


def seam(runner: Any, filler: Filler, planner: Planner) -> str:
    """Fill the rows at each step of this runner, whichever it is; says which. Raises `UnsupportedError` for another one."""
    if _has(
        getattr(runner, "model_state", None), "prepare_inputs", "prepare_dummy_inputs", "add_request", "remove_request"
    ):
        _v2(runner.model_state, filler, planner)
        return "V2"
    if _has(runner, "_prepare_inputs", "_dummy_run", "input_batch", "requests"):
        batch = runner.input_batch
        if _has(batch, "req_ids", "num_reqs", "num_computed_tokens_cpu"):
            _v1(runner, filler, planner)
            return "V1"
    raise UnsupportedError(
        f"this vLLM's {type(runner).__name__} doesn't show which tokens are whose in a way that is known here, so requests can't"
        " be steered exactly; steerlab was tried with vLLM 0.32."
    )


def _has(thing: object, *names: str) -> bool:
    return thing is not None and all(hasattr(thing, name) for name in names)


class Steps:
    """Tells the filler of each step, and does as little as it may.

    Where nobody is steered there is nothing to do; where the same requests go on in the same places, each in its last class,
    their rows are what they were, which a few comparisons show.
    """

    def __init__(self, filler: Filler) -> None:
        self._filler = filler
        self._ids: list[str] = []
        self._from: Counts | None = None

    def same(self, ids: Sequence[str], computed: Counts, counts: Counts) -> bool:
        """Whether this step is the last one, a token later; its rows stay then. `computed` and `counts` are of each request."""
        before = self._from
        alike = (
            self._filler.steady
            and before is not None
            and len(counts) == len(before) == len(ids)
            and ids == self._ids
            and bool((counts == 1).all())
            and bool((computed == before + 1).all())
        )
        if alike:
            self._filler.again()
            self._from = computed.copy()
        return alike

    def step(self, ids: Sequence[str], plans: Sequence[Plan | None], computed: Counts, counts: Counts) -> None:
        """Fill the rows. Raises `UnsupportedError`."""
        if len(ids) != len(counts):
            raise UnsupportedError(
                f"a step has {len(ids)} requests and {len(counts)} counts of tokens; nothing is served so."
            )
        self._filler.step([Span(*one) for one in zip(plans, computed.tolist(), counts.tolist(), ids, strict=True)])
        self._ids, self._from = list(ids), computed.copy()

    def changed(self) -> None:
        """A request has come or gone, so the next step isn't the same, whatever it is called."""
        self._from = None


def _v1(runner: Any, filler: Filler, planner: Planner) -> None:
    prepare, dummy, steps = runner._prepare_inputs, runner._dummy_run, Steps(filler)
    steered: dict[str, tuple[Any, int, Plan]] = {}  # with what each plan was made of

    def prepared(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = prepare(scheduler_output, num_scheduled_tokens)
        new = scheduler_output.scheduled_new_reqs  # every request is once among these
        over = [*scheduler_output.finished_req_ids, *(one.req_id for one in new)]
        if over:
            steps.changed()
            filler.watch.end(over)
        for name in over:
            steered.pop(name, None)
        for one in new:
            state = runner.requests[one.req_id]
            if (plan := _plan_of(planner, state.sampling_params, state.num_prompt_tokens)) is not None:
                steered[one.req_id] = (state.sampling_params, state.num_prompt_tokens, plan)
        if not steered:
            filler.clear()
            return result
        batch = runner.input_batch
        ids = batch.req_ids[: int(batch.num_reqs)]
        computed = batch.num_computed_tokens_cpu[: len(ids)]
        if not steps.same(ids, computed, num_scheduled_tokens):
            steps.step(ids, [steered[i][2] if i in steered else None for i in ids], computed, num_scheduled_tokens)
            for gone in [i for i in steered if i not in runner.requests]:
                del steered[gone]
        return result

    runner._prepare_inputs = prepared
    runner._dummy_run = _cleared(dummy, filler)


def _v2(state: Any, filler: Filler, planner: Planner) -> None:
    prepare, dummy, add, remove = (
        state.prepare_inputs,
        state.prepare_dummy_inputs,
        state.add_request,
        state.remove_request,
    )
    steps = Steps(filler)
    plans: dict[str, Plan | None] = {}
    steered: set[str] = set()

    def added(req_index: int, new_req_data: Any) -> Any:
        length, name = getattr(new_req_data, "prompt_len", None), new_req_data.req_id
        if length is None:
            length = len(new_req_data.prompt_token_ids)
        plans[name] = _plan_of(planner, new_req_data.sampling_params, int(length))
        steered.discard(name)
        if plans[name] is not None:
            steered.add(name)
        steps.changed()
        return add(req_index, new_req_data)

    def removed(req_id: str) -> Any:
        result = remove(req_id)
        plans.pop(req_id, None)
        steered.discard(req_id)
        steps.changed()
        return result

    def prepared(input_batch: Any, req_states: Any) -> Any:
        ids, computed = input_batch.req_ids, input_batch.num_computed_tokens_np
        counts = input_batch.num_scheduled_tokens
        if not steered and all(map(plans.__contains__, ids)):
            filler.clear()
        elif not steps.same(ids, computed, counts):
            steps.step(ids, [plans[i] if i in plans else _dummy(i, req_states) for i in ids], computed, counts)
        return prepare(input_batch, req_states)

    state.prepare_inputs, state.add_request, state.remove_request = prepared, added, removed
    state.prepare_dummy_inputs = _cleared(dummy, filler)


def _dummy(request: str, req_states: Any) -> None:
    """A request that was never added is one of a dummy run's, and does nothing. Raises `UnsupportedError` for a real one."""
    if request in req_states.req_id_to_index:
        raise UnsupportedError(f"the request {request} came to the model without having been added; it is not served.")


def _plan_of(planner: Planner, sampling: Any, prompt_length: int) -> Plan | None:
    return None if sampling is None else planner.plan(sampling.extra_args, prompt_length)


def _cleared(dummy: Callable[..., Any], filler: Filler) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        filler.clear()
        return dummy(*args, **kwargs)

    return run
