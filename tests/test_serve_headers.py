"""The header of a steering's file, mutated by its own schema: a clear refusal or a steering, and one bad file hides no other.

STEERLAB_HEADERS sets how many mutations (120 unless told otherwise; `make test-hostile` makes 5,000).
"""

from __future__ import annotations

import copy
import io
import json
import os
import struct
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from serving import Here, made, shift
from steerlab import controls, edits
from steerlab.artefact import KEY
from steerlab.cli.show import described, drawn
from steerlab.errors import ArtefactError
from steerlab.positions import ALL, DECODING
from steerlab.sites import Site
from steerlab.steering import Prompt, Steering
from steerlab.testing import tiny

MANY = int(os.environ.get("STEERLAB_HEADERS", "120"))
MANY_TIMES = settings(
    max_examples=MANY, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
RANGE = {"directions": {"elicit": {"min_useful": 0.5, "default": 1.0, "max_safe": 1.2}}, "budget": {"kl": 0.1}}
FITTED = {
    "method": {"name": "cdas", "lr": 0.1}, "data": {"concept": "tea", "source": "x", "positive": 3}, "range": RANGE,
    "figures": {"divergence": {"unsteered": 1.5, "held_out": [1.0, 0.5]}, "loss": [3.0, 2.0]}, "versions": {"torch": "2"},
}  # fmt: skip
odd = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=8), st.integers(-(10**400), 10**400),
    st.sampled_from([
        [], {}, [None], {"a": None}, "\ud800", "resid@1", "w:x@1", {"tensor": "0.edit.v"}, {"tensor": 3}, {"tensor": []},
        {"site": None}, {"site": "1"}, {"kind": "Shift"}, {"kind": []}, -0.0, 1e308, 2**63, 2**31, 10**5, "\x1b[2J", "\u202e",
    ]),
    st.integers(1, 90).map(lambda n: json.loads("[" * n + "]" * n)),
    st.integers(1, 90).map(lambda n: json.loads('{"a":' * n + "1" + "}" * n)),
)  # fmt: skip


@pytest.fixture(scope="module")
def engine():
    return tiny.engine("llama")


@pytest.fixture(scope="module")
def documents(engine):
    """The document and tensors of a steering of every kind of edit and control that exists, and of prompts."""
    found = []
    for n, kind in enumerate(edits.kinds().values()):
        found.append(made(engine, kind.random(32, torch.Generator().manual_seed(n)), **FITTED))
    for n, kind in enumerate(edits.kinds("weights").values()):
        site = Site.parse("w:mlp.down_proj@1")
        found.append(
            made(engine, kind.random(engine.width(site), torch.Generator().manual_seed(n)), str(site), ALL, **FITTED)
        )
    for n, kind in enumerate(controls.kinds().values()):
        control = kind.random(Site.parse("1"), 32, torch.Generator().manual_seed(n))
        found.append(made(engine, edits.Shift(torch.ones(32)), positions=DECODING, control=control, **FITTED))
    found.append(Steering((), Prompt("Be brief.", "Be long."), shift(engine, 1).meta))
    return [(json.loads(json.dumps(d)), t) for d, t in (s._document() for s in found)]


@pytest.fixture(scope="module")
def server(engine, tmp_path_factory):
    """A server whose folder others may write to."""
    folder = tmp_path_factory.mktemp("headers")
    shift(engine, 1).save(folder / "good.safetensors")
    here = Here(engine, folder, shared=True)
    yield here
    here.close()


def nodes(value, at=()) -> list[tuple]:
    """The paths of everything in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [*([at] if at else []), *(path for key, one in inner for path in nodes(one, (*at, key)))]


def mutate(document, data) -> None:
    """Change one thing: another value, another one's value, a key or an item more or less, a wrapping."""
    paths = nodes(document)
    *above, last = data.draw(st.sampled_from(paths))
    holder = document
    for key in above:
        holder = holder[key]
    kind = data.draw(st.sampled_from(["value", "value", "value", "swap", "less", "more", "wrap", "twice"]))
    if kind == "value":
        holder[last] = data.draw(odd)
    elif kind == "swap":
        value = document
        for key in data.draw(st.sampled_from(paths)):
            value = value[key]
        holder[last] = copy.deepcopy(value)
    elif kind == "less":
        del holder[last]
    elif kind == "wrap":
        holder[last] = data.draw(st.sampled_from([[holder[last]], {"a": holder[last]}, str(holder[last])]))
    elif isinstance(holder, dict):
        holder[data.draw(st.text(max_size=6))] = data.draw(odd) if kind == "more" else copy.deepcopy(holder[last])
    else:
        holder.append(data.draw(odd) if kind == "more" else copy.deepcopy(holder[last]))


def around(made: bytes, times: int, data) -> bytes:
    """A safetensors file with its own header mutated: names, dtypes, shapes and offsets of tensors, and what stands beside."""
    (length,) = struct.unpack("<Q", made[:8])
    header = dict(sorted(json.loads(made[8 : 8 + length]).items()))  # in an order of our own: the library has none
    for _ in range(times):
        if nodes(header):
            mutate(header, data)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + made[8 + length :]


def names(here) -> list[str]:
    told = here.ask("GET", "/v1/steerings")
    assert told.status_code == 200, told.text
    return [row["name"] for row in told.json()["data"]]


@MANY_TIMES
@given(st.data())
def test_mutated_headers_are_refused_or_served_and_hide_no_other(server, documents, data):
    document, tensors = copy.deepcopy(data.draw(st.sampled_from(documents)))
    times = data.draw(st.integers(1, 3))
    inner = data.draw(st.sampled_from([True, True, True, False]))  # the document, or the list of tensors around it
    for _ in range(times if inner else 0):
        if nodes(document):
            mutate(document, data)
    made = safetensors.torch.save(tensors, metadata={KEY: json.dumps(document)})
    path = server.service.settings.store / "dropped.safetensors"
    path.write_bytes(made if inner else around(made, times, data))
    try:
        with suppress(ArtefactError):  # and nothing else
            seen(Steering.load(path), path)
        assert "good" in names(server)
        assert server.ask("GET", "/v1/steerings/good").status_code == 200
        assert server.ask("GET", "/v1/steerings/dropped").status_code in (200, 409)
        told = server.ask("PUT", "/v1/steerings/uploaded", content=path.read_bytes())
        assert told.status_code in (201, 400), (told.status_code, told.text)
        if told.status_code == 201:
            assert names(server) == sorted({"good", "uploaded", *names(server)})
            assert server.ask("DELETE", "/v1/steerings/uploaded").status_code == 200
        assert server.ask("DELETE", "/v1/steerings/dropped").status_code == 200
    finally:
        path.unlink(missing_ok=True)
    assert names(server) == ["good"]


def seen(steering: Steering, path: Path) -> None:
    """What a person is shown of it, as a picture and as data."""
    json.dumps(described(steering, path), default=str)
    with patch("steerlab.cli.show.console", lambda: Console(file=io.StringIO(), markup=False)):
        drawn(steering, path)
