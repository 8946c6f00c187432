"""The V2 model runner's seam, on vLLM's own classes of it; the runner itself needs a GPU. `make test-vllm` runs this."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch

import steerlab as sl
from steerlab.vllm.admission import Asked, Files, Part
from steerlab.vllm.batch import Filler
from steerlab.vllm.seams import Planner, seam
from steerlab.vllm.tables import Size, Tables

if not os.environ.get("STEERLAB_VLLM_TEST"):
    pytest.skip("vLLM isn't asked for: `make test-vllm` makes its environment and runs this", allow_module_level=True)

WIDTH = 8


@pytest.fixture
def laid(tmp_path):
    """A model state of V2 with the seam in it, the tables, and what a steered request carries."""
    from vllm.v1.worker.gpu.model_states.default import DefaultModelState

    state = object.__new__(DefaultModelState)  # its own __init__ wants a whole engine
    state.rope_state = state.prompt_embeds_state = None
    files = Files(tmp_path)
    positions = sl.Positions((sl.positions.Window(1, 3),), (sl.positions.Window(0),))
    steering = sl.Steering((sl.Intervention(sl.Site(0), sl.Shift(torch.ones(WIDTH)), positions),))
    asked = Asked.of([Part(files.keep(steering), 2.0, None)], 0)
    tables = Tables(Size((0,), 9, WIDTH, 0, False), 64, torch.device("cpu"), always=True)
    assert seam(SimpleNamespace(model_state=state), Filler(tables), Planner(files)) == "V2"
    return state, tables, {"steerlab": asked.to_json()}


def add(state, index, name, length, extra):
    from vllm import SamplingParams
    from vllm.v1.core.sched.output import NewRequestData

    ids = list(range(10, 10 + length))
    state.add_request(index, NewRequestData(
        req_id=name, prompt_token_ids=ids, mm_features=[], sampling_params=SamplingParams(extra_args=extra), pooling_params=None,
        block_ids=([],), num_computed_tokens=0, lora_request=None, prefill_token_ids=ids,
    ))  # fmt: skip


def batch(names, counts, computed):
    """A step's batch, in the runner's order."""
    import numpy as np
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    made = InputBatch.make_dummy(len(names), sum(counts), InputBuffers(8, 64, torch.device("cpu")))
    made.req_ids = names
    made.num_scheduled_tokens = np.array(counts, dtype=np.int32)
    made.num_computed_tokens_np = np.array(computed, dtype=np.int32)
    return made


def test_rows_follow_the_runners_order(laid):
    state, tables, extra = laid
    known = SimpleNamespace(req_id_to_index={"a": 0, "b": 1})
    add(state, 0, "a", 5, extra)
    add(state, 1, "b", 4, None)
    state.prepare_inputs(batch(["b", "a"], [1, 4], [6, 0]), known)  # decodes stand first
    rows = tables.rows[:6].tolist()
    steered = rows[2]
    assert steered > 0
    assert rows == [0, 0, steered, steered, 0, 0]
    assert torch.equal(tables.edits[0, steered, :WIDTH], torch.full((WIDTH,), 2.0))
    state.prepare_inputs(batch(["a", "b"], [1, 1], [4, 7]), known)  # the last prompt token
    assert tables.rows[:3].tolist() == [0, 0, 0]
    state.prepare_inputs(batch(["b", "a"], [1, 1], [8, 5]), known)  # generated
    assert tables.rows[:3].tolist() == [0, steered, 0]


def test_dummy_runs_have_no_rows_and_strangers_fail(laid):
    from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers

    state, tables, extra = laid
    known = SimpleNamespace(req_id_to_index={"a": 0})
    add(state, 0, "a", 2, extra)
    state.prepare_inputs(batch(["a"], [1], [2]), known)
    assert tables.rows[0] > 0
    state.prepare_inputs(InputBatch.make_dummy(2, 6, InputBuffers(8, 64, torch.device("cpu"))), known)
    assert not tables.rows.any()
    state.remove_request("a")  # preempted: added again before it runs again
    with pytest.raises(sl.UnsupportedError, match="without having been added"):
        state.prepare_inputs(batch(["a"], [1], [2]), known)


def test_a_request_that_nobody_resolved_isnt_added(laid):
    state, _, _ = laid
    with pytest.raises(sl.UnsupportedError, match="past steerlab's admission"):
        add(state, 0, "a", 2, {"steerlab": "0.8*formal"})


def test_another_runner_is_refused(tmp_path):
    tables = Tables(Size((0,), 3, WIDTH, 0, False), 8, torch.device("cpu"), always=True)
    with pytest.raises(sl.UnsupportedError, match="which tokens are whose"):
        seam(SimpleNamespace(), Filler(tables), Planner(Files(tmp_path)))
