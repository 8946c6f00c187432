"""`steerlab serve --engine vllm` and `steerlab verify --on vllm`, as a user runs them: `make test-vllm` has what they need.

STEERLAB_VLLM_PYTHON is a Python that has vLLM and steerlab.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import time

import httpx
import pytest
import torch

import steerlab as sl
from serving import clamp, gated, made, process, shift, solo
from steerlab import pilot
from steerlab.engines.base import Sampling
from steerlab.engines.hf_serving import Ask
from steerlab.engines.readout import readouts
from steerlab.testing.precision import ONE
from steerlab.verify import verify
from steerlab.verify.base import Options

PYTHON = os.environ.get("STEERLAB_VLLM_PYTHON", "")
ASKED = "Describe a kitchen."
OFFLINE = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}

if not PYTHON:
    pytest.skip("vLLM isn't asked for: `make test-vllm` makes its environment and runs this", allow_module_level=True)


@pytest.fixture(scope="module")
def engine():
    return sl.load("pilot")


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    shift(engine, 1, 1.5, "3").save(folder / "pirate.safetensors")
    clamp(engine, 2, 1, "5").save(folder / "formal.safetensors")
    shy(engine).save(folder / "shy.safetensors")
    options = json.dumps({"enforce_eager": True, "max_model_len": 384})
    words = (
        "pirate.safetensors",
        "formal.safetensors",
        "shy.safetensors",
        "--monitor",
        "formal",
        "--engine",
        "vllm",
        "--engine-options",
        options,
    )
    with process(*words, folder=folder, environment=OFFLINE, python=PYTHON) as server:
        yield server


def shy(engine):
    """A shift behind a held gate that opens for some prompts."""
    (one,) = shift(engine, 4, 1.0, "3").interventions
    site, texts = sl.Site(1), ("Describe a kitchen.", "Name three fruits.")
    direction = torch.randn(engine.width(site), generator=torch.Generator().manual_seed(9))
    scores = engine.capture([sl.Example.ask(text) for text in texts], [site], sl.LAST_PROMPT)[site].values @ direction
    return made(engine, one.edit, "3", sl.DECODING, sl.Gate(site, direction, float(scores.mean()), held=True))


def asked(server, text=ASKED, **body):
    """A greedy reply."""
    given = {
        "model": "base",
        "messages": [{"role": "user", "content": text}],
        "temperature": 0,
        "max_tokens": 20,
        **body,
    }
    return httpx.post(f"{server.address}/v1/chat/completions", json=given, timeout=300)


def test_the_server_says_what_the_hugging_face_engine_says(server, engine):
    pirate, formal = shift(engine, 1, 1.5, "3"), clamp(engine, 2, 1, "5")
    cases = [
        ({}, None),
        ({"steering": "pirate"}, pirate),
        ({"steering": [{"name": "pirate", "strength": -0.5}, "formal"]}, pirate.scaled(-0.5) + formal),
        ({"model": "base+0.5*formal"}, formal.scaled(0.5)),
        ({"steering": [{"name": "pirate", "strength": 0}]}, None),
    ]
    for body, steering in cases:
        answer = asked(server, logprobs=True, top_logprobs=2, **body).json()
        wanted = solo(engine, ASKED, steering, 0, max_new_tokens=20, temperature=0)[0]
        choice = answer["choices"][0]
        assert choice["message"]["content"] == wanted.text
        got = [one["logprob"] for one in choice["logprobs"]["content"]]
        # two implementations of a model in float32
        torch.testing.assert_close(torch.tensor(got), torch.tensor(wanted.logprobs[: len(got)]), atol=2e-4, rtol=0)
        assert all(len(one["top_logprobs"]) == 2 for one in choice["logprobs"]["content"])
        assert [p["strength"] for p in answer["steering"]["applied"]] == [
            float(t.split("*")[0]) if isinstance(t, str) and "*" in t else t.get("strength", 1.0) if isinstance(t, dict) else 1.0
            for t in ([body["model"][5:]] if "model" in body else [body["steering"]] if isinstance(body.get("steering"), str)
                      else body.get("steering", []))
        ]  # fmt: skip


def by_hand(engine, text, steering, read):
    """What the Hugging Face engine reads and decides."""
    running = engine.running()
    prompt = engine.renderer.prompt([sl.Message("user", text)])
    (row,) = running.admit([Ask(prompt, steering, Sampling(max_new_tokens=20, temperature=0), readouts=read)])
    while row.finish is None:
        running.step()
    return row, list(running.decisions(row).values())


def test_readouts_and_gates_are_told_as_the_hugging_face_engine_tells_them(server, engine):
    pirate, formal, behind = shift(engine, 1, 1.5, "3"), clamp(engine, 2, 1, "5"), shy(engine)
    read, opened = readouts(pirate) + readouts(formal), set()
    for text in ("Describe a kitchen.", "Name three fruits."):
        for body, steering in (
            ({}, None),
            ({"steering": "pirate"}, pirate),
            ({"steering": ["shy", "formal"]}, behind + formal),
        ):
            told = asked(server, text, readouts=["pirate", "formal"], **body).json()["choices"][0]["steering"]
            row, tallies = by_hand(engine, text, steering, read)
            got = torch.tensor([told["readouts"]["pirate"], told["readouts"]["formal"]]).T
            wanted = torch.tensor(row.readings)
            assert got.shape == wanted.shape
            # two implementations of a model in float32, as a share of the largest
            assert float(((got - wanted).abs() / wanted.abs().amax(dim=0)).max()) < 2e-4
            found = [(one["open"], one["tokens"], one["acted"]) for one in told.get("gates", [])]
            assert found == [(t.acted > 0, t.tokens, t.acted) for t in tallies]
            opened |= {one["open"] for one in told.get("gates", [])}
    assert opened == {True, False}
    metrics = httpx.get(f"{server.address}/metrics").text
    assert 'steerlab_readout_count{steering="formal"' in metrics


def test_it_streams_stops_and_draws(server):
    with httpx.stream(
        "POST", f"{server.address}/v1/chat/completions", timeout=300,
        json={"model": "base+1*pirate", "messages": [{"role": "user", "content": ASKED}], "temperature": 0, "max_tokens": 20,
              "stream": True, "readouts": ["formal"]},
    ) as stream:  # fmt: skip
        lines = [line[6:] for line in stream.iter_lines() if line.startswith("data: ")]
    pieces = [json.loads(line)["choices"][0].get("steering", {}).get("readouts", {}) for line in lines[:-1]]
    streamed = [value for piece in pieces for value in piece.get("formal", [])]
    told = asked(server, steering="pirate", readouts=["formal"]).json()["choices"][0]["steering"]["readouts"]["formal"]
    assert streamed == pytest.approx(told, rel=2e-4, abs=ONE)  # two implementations of a model in float32
    text = "".join(json.loads(line)["choices"][0]["delta"].get("content", "") for line in lines[:-1])
    whole = asked(server, steering="pirate").json()["choices"][0]["message"]["content"]
    assert lines[-1] == "[DONE]"
    assert text == whole
    word = whole.split()[2]
    cut = asked(server, steering="pirate", stop=[word]).json()["choices"][0]
    assert cut["message"]["content"] == whole[: whole.index(word)]
    assert cut["finish_reason"] == "stop"
    drawn = [asked(server, temperature=1.0, seed=s).json()["choices"][0]["message"]["content"] for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_what_vllm_cant_do_is_refused_with_a_sentence(server, engine):
    for body, words in (
        ({"unsteered": ["thinking"], "steering": "pirate"}, "unsteered spans"),
        ({"steering": "nothing"}, "nothing"),
    ):
        answer = asked(server, **body)
        assert 400 <= answer.status_code < 500, answer.text
        assert words in answer.json()["error"]["message"]
    place = f"{server.address}/v1/steerings"
    for name, steering, words in (
        ("gate", gated(engine, shift(engine, 1), 0.0, ahead=True), "decides ahead"),
        ("wide", clamp(engine, 3, 6, "2"), '"rank": 6'),
    ):
        path = server.log.parent / f"{name}.bin"
        steering.save(path)
        answer = httpx.put(f"{place}/{name}", content=path.read_bytes(), timeout=300)
        assert answer.status_code == 400, answer.text
        assert words in answer.json()["error"]["message"]


def test_an_upload_is_served(server, engine):
    path = server.log.parent / "new.bin"
    other = shift(engine, 7, 1.0, "2")
    other.save(path)
    answer = httpx.put(f"{server.address}/v1/steerings/new", content=path.read_bytes(), timeout=300)
    assert answer.status_code in (200, 201), answer.text
    got = asked(server, steering="new").json()["choices"][0]["message"]["content"]
    assert got == solo(engine, ASKED, other, 0, max_new_tokens=20, temperature=0)[0].text


def test_it_ends_gracefully(server):
    assert server.end(signal.SIGTERM) == 0


@pytest.fixture(scope="module")
def theirs(engine, tmp_path_factory):
    """vLLM's own server, its engine in a process of its own, with the plug-in that it loads by itself."""
    folder = tmp_path_factory.mktemp("theirs")
    shift(engine, 1, 1.5, "3").save(folder / "pirate.safetensors")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = json.dumps({"steerlab": {"steerings": str(folder), "reads": 1}})
    words = ["--model", str(pilot.folder("pilot")), "--served-model-name", "pilot", "--dtype", "float32", "--enforce-eager",
             "--max-model-len", "384", "--host", "127.0.0.1", "--port", str(port), "--additional-config", config]  # fmt: skip
    log = folder / "server.log"
    with log.open("wb") as told:
        server = subprocess.Popen(
            [PYTHON, "-m", "vllm.entrypoints.openai.api_server", *words],
            stdout=told,
            stderr=told,
            env={**os.environ, **OFFLINE},
        )
    try:
        until = time.monotonic() + 900
        while time.monotonic() < until and server.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                    break
            time.sleep(1)
        else:
            raise AssertionError(f"the server didn't come up:\n{log.read_text()[-3000:]}")
        yield f"http://127.0.0.1:{port}/v1/completions"
    finally:
        server.terminate()
        server.wait(timeout=120)


def test_vllms_own_server(theirs, engine):
    pirate = shift(engine, 1, 1.5, "3")
    prompt = engine.renderer.prompt([sl.Message("user", ASKED)])
    body = {"model": "pilot", "prompt": list(prompt.ids), "max_tokens": 20, "temperature": 0, "logprobs": 1}
    for extra, steering in (
        ({}, None),
        ({"steerlab": "0.5*pirate"}, pirate.scaled(0.5)),
        ({"steerlab": "pirate"}, pirate),
    ):
        answer = httpx.post(theirs, json={**body, "vllm_xargs": extra} if extra else body, timeout=300)
        assert answer.status_code == 200, answer.text
        choice = answer.json()["choices"][0]
        wanted = solo(engine, ASKED, steering, 0, max_new_tokens=20, temperature=0)[0]
        assert choice["text"] == wanted.text
        got = torch.tensor(choice["logprobs"]["token_logprobs"])
        # two implementations of a model in float32
        torch.testing.assert_close(got, torch.tensor(wanted.logprobs[: len(got)]), atol=2e-4, rtol=0)
    read = json.dumps({"steering": "pirate", "readouts": ["pirate"]})
    answer = httpx.post(theirs, json={**body, "vllm_xargs": {"steerlab": read}}, timeout=300)
    told = answer.json()["kv_transfer_params"]["steerlab"]["readouts"]["pirate"]
    row, _ = by_hand(engine, ASKED, pirate, readouts(pirate))
    wanted = [values[0] for values in row.readings]
    torch.testing.assert_close(  # two implementations of a model in float32
        torch.tensor(told[: len(wanted)]), torch.tensor(wanted[: len(told)]), atol=2e-4, rtol=2e-4
    )
    answer = httpx.post(theirs, json={**body, "vllm_xargs": {"steerlab": "pirat"}}, timeout=300)
    assert answer.status_code == 400, answer.text
    assert "Did you mean 'pirate'" in answer.text


def test_a_receipt_of_vllm(engine):
    steering = shift(engine, 1, 1.5, "3") + clamp(engine, 2, 1, "5").scaled(0.7)
    prompts = [sl.Example.ask(text) for text in ("Describe a kitchen.", "What would you tell somebody who asks why?")]
    (receipt,) = verify(engine, steering, ["vllm"], prompts=prompts, options=Options(vllm=PYTHON, tokens=8))
    assert receipt.passed, receipt
    held = {c.name for c in receipt.checks if c.passed}  # that of the cache applies: a prompt is longer than its blocks
    assert held >= {"reference", "mixed", "neighbours", "cache", "off"}
    ahead = gated(engine, steering_of(steering), 0.0, ahead=True)
    (refused,) = verify(engine, ahead, ["vllm"], options=Options(vllm=PYTHON))
    assert "decides ahead" in refused.refused


def test_a_receipt_of_a_gated_steering(engine):
    prompts = [sl.Example.ask(text) for text in ("Describe a kitchen.", "What would you tell somebody who asks why?")]
    given = gated(engine, steering_of(shift(engine, 1, 1.5, "3")), 0.0)
    (receipt,) = verify(engine, given, ["vllm"], prompts=prompts, options=Options(vllm=PYTHON, tokens=8))
    assert receipt.passed, receipt


def steering_of(steering):
    return sl.Steering(steering.interventions[:1], None, steering.meta)
