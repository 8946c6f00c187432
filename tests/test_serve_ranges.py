"""Calibrated ranges in the server: an answer says where a strength stands, and what is strict is held to it."""

from __future__ import annotations

import pytest

from serving import TEXT, Here, shift
from steerlab.testing import tiny


@pytest.fixture(scope="module")
def engine():
    return tiny.engine("llama")


RANGE = {
    "rule": 2,
    "directions": {"elicit": {"sign": 1, "min_useful": 0.5, "default": 1.0, "max_safe": 1.2, "max_unresolved": 1.4}},
    "budget": {"kl": 0.1},
}


@pytest.fixture
def ranged(engine, tmp_path):
    folder = tmp_path / "ranged"
    folder.mkdir()
    shift(engine, 1, range=RANGE).save(folder / "known.safetensors")
    shift(engine, 2).save(folder / "unknown.safetensors")
    here = Here(engine, folder)
    yield here
    here.close()


def applied(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["steering"]["applied"][0]


def test_an_answer_says_where_a_strength_stands_in_its_range(ranged):
    inside = applied(ranged.chat(TEXT, steering="known", max_tokens=1))
    assert inside["standing"] == "inside" and "warning" not in inside and inside["range"] == RANGE
    unresolved = applied(ranged.chat(TEXT, steering=[{"name": "known", "strength": 1.3}], max_tokens=1))
    assert unresolved["standing"] == "unresolved" and "neither certifies" in unresolved["warning"]
    beyond = applied(ranged.chat(TEXT, steering=[{"name": "known", "strength": 2.0}], max_tokens=1))
    assert beyond["standing"] == "beyond" and "beyond its calibrated range" in beyond["warning"]
    assert applied(ranged.chat(TEXT, steering="unknown", max_tokens=1))["standing"] == "not calibrated"
    elsewhere = applied(ranged.chat(TEXT, steering=[{"name": "known", "positions": "generated"}], max_tokens=1))
    assert elsewhere["standing"] == "not calibrated" and "other positions" in elsewhere["warning"]


@pytest.mark.parametrize(
    ("steering", "allowed"),
    [
        ("known", True), ([{"name": "known", "strength": 1.3}], False), ([{"name": "known", "strength": 1.5}], False),
        ([{"name": "known", "strength": -0.5}], False), ("unknown", False), ([{"name": "unknown", "strength": 0.0}], True),
    ],
)  # fmt: skip
def test_a_strict_request_is_held_to_calibrated_strengths(ranged, steering, allowed):
    answer = ranged.chat(TEXT, steering=steering, strict=True, max_tokens=1)
    assert answer.status_code == (200 if allowed else 400)
    if not allowed:
        assert answer.json()["error"]["code"] == "beyond_range"


def test_a_strict_server_is_never_loosened_by_a_request(engine, ranged, tmp_path):
    strict = Here(engine, tmp_path / "ranged", strict=True)
    try:
        assert strict.chat(TEXT, steering="unknown", strict=False, max_tokens=1).status_code == 400
        assert strict.chat(TEXT, model="base+2*known", max_tokens=1).status_code == 400
        assert strict.chat(TEXT, steering="known", max_tokens=1).status_code == 200
    finally:
        strict.close()
