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

from ..errors import UnsupportedError
from .admission import Asked, Files, asked, interventions
from .batch import Filler, Plan, Span

KEPT = 4096  # plans that are remembered


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
        key = (found.key, found.head, prompt_length)
        if key in self._plans:
            self._plans.move_to_end(key)
            return self._plans[key]
        plan = Plan.of(found.key, interventions(self._files, found.parts), prompt_length, found.head)
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


def _v1(runner: Any, filler: Filler, planner: Planner) -> None:
    prepare, dummy = runner._prepare_inputs, runner._dummy_run

    def prepared(scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        result = prepare(scheduler_output, num_scheduled_tokens)
        batch = runner.input_batch
        n = int(batch.num_reqs)
        states = [runner.requests[one] for one in batch.req_ids[:n]]
        _check_spans(n, len(num_scheduled_tokens))
        plans = [_plan_of(planner, s.sampling_params, s.num_prompt_tokens) for s in states]
        filler.step(_spans(plans, batch.num_computed_tokens_cpu[:n], num_scheduled_tokens))
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
    plans: dict[str, Plan | None] = {}

    def added(req_index: int, new_req_data: Any) -> Any:
        length = getattr(new_req_data, "prompt_len", None)
        if length is None:
            length = len(new_req_data.prompt_token_ids)
        plans[new_req_data.req_id] = _plan_of(planner, new_req_data.sampling_params, int(length))
        return add(req_index, new_req_data)

    def removed(req_id: str) -> Any:
        result = remove(req_id)
        plans.pop(req_id, None)
        return result

    def prepared(input_batch: Any, req_states: Any) -> Any:
        _check_spans(int(input_batch.num_reqs), len(input_batch.num_scheduled_tokens))
        found = [plans[one] if one in plans else _dummy(one, req_states) for one in input_batch.req_ids]
        filler.step(_spans(found, input_batch.num_computed_tokens_np, input_batch.num_scheduled_tokens))
        return prepare(input_batch, req_states)

    state.prepare_inputs, state.add_request, state.remove_request = prepared, added, removed
    state.prepare_dummy_inputs = _cleared(dummy, filler)


def _dummy(request: str, req_states: Any) -> None:
    """A request that was never added is one of a dummy run's, and does nothing. Raises `UnsupportedError` for a real one."""
    if request in req_states.req_id_to_index:
        raise UnsupportedError(f"the request {request} came to the model without having been added; it is not served.")


def _plan_of(planner: Planner, sampling: Any, prompt_length: int) -> Plan | None:
    return None if sampling is None else planner.plan(sampling.extra_args, prompt_length)


def _spans(plans: Sequence[Plan | None], computed: Any, counts: Any) -> list[Span]:
    return [Span(plan, int(first), int(count)) for plan, first, count in zip(plans, computed, counts, strict=True)]


def _check_spans(requests: int, counts: int) -> None:
    if requests != counts:
        raise UnsupportedError(f"a step has {requests} requests and {counts} counts of tokens; nothing is served so.")


def _cleared(dummy: Callable[..., Any], filler: Filler) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        filler.clear()
        return dummy(*args, **kwargs)

    return run
