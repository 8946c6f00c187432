"""Ranges: where a strength stands, in words, in other units, in files, and held to by `generate`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ranged import RANGE, steering
from steerlab import hub
from steerlab.cli.common import coloured, keep_to_range, opened
from steerlab.edits import Ablate
from steerlab.errors import ArtefactError, EditError
from steerlab.evals import card
from steerlab.ranges import in_words, phrases, rescaled, sides, standing
from steerlab.steering import Steering
from steerlab.testing import planted

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("strength", "state"),
    [(0, "inside"), (0.6, "inside"), (1.2, "inside"), (1.21, "unresolved"), (1.4, "unresolved"),
     (1.41, "beyond"), (0.3, "weak"), (-1.6, "inside"), (-2, "beyond"),
     (-0.1, "weak")],
)  # fmt: skip
def test_where_a_strength_stands(strength, state):
    assert standing(RANGE, strength).state == state


def test_what_was_not_calibrated_says_so():
    assert standing(None, 1.0).state == "not calibrated" and standing(None, 0.0).state == "inside"
    one = {"rule": 2, "directions": {"elicit": RANGE["directions"]["elicit"]}}
    assert standing(one, -1.0).state == "not calibrated" and "below 0" in standing(one, -1.0).words
    assert in_words(None) == "not calibrated"


@pytest.mark.parametrize(
    "told",
    [{}, {"directions": []}, {"directions": {"up": {}}}, {"directions": {"elicit": {"max_safe": "1"}}},
     {"directions": {"elicit": {"max_safe": float("nan")}}}, {"directions": {"elicit": {"max_safe": 10**400}}},
     {"directions": {"elicit": {"default": 1.0}}}],
)  # fmt: skip
def test_what_is_no_range_is_told_and_never_trusted(told):
    with pytest.raises(ArtefactError):
        sides(told)
    assert standing(told, 1.0).state == "not calibrated"
    assert rescaled(told, 2.0) is None
    assert "can't be read" in in_words(told)


@pytest.mark.parametrize(
    ("verdicts", "safe", "words"),
    [
        (
            {"kl": "held", "lost": "open"},
            0.0,
            "(unresolved: at +0.4 it isn't settled by 400 readings of lost; measure more)",
        ),
        (
            {"kl": "open", "lost": "open"},
            0.0,
            "(unresolved: at +0.4 it isn't settled by 96 readings of kl, 400 readings of lost; measure more)",
        ),
        ({"kl": "broken", "lost": "open"}, 0.0, "(no strength that was tried does)"),
        (
            {"kl": "held", "lost": "held"},
            0.4,
            "(strengths up to +0.4 keep it, unresolved: at +0.8 it isn't settled by 400 readings of lost; measure more)",
        ),
        ({}, 0.0, "(no strength that was tried does)"),
    ],
)
def test_a_range_says_where_it_was_measured_on_too_little(verdicts, safe, words):
    many = {"kl": 96, "lost": 400}
    rows = [
        {"strength": 0.4, "verdicts": verdicts, "n": many},
        {"strength": 0.8, "verdicts": {"lost": "open"}, "n": many},
    ]
    side = {"sign": 1, "min_useful": None, "default": None, "max_safe": safe, "strengths": rows}
    assert in_words({"rule": 2, "directions": {"elicit": side}}) == f"elicit: nothing useful within the budget {words}"


def test_a_scaled_steering_says_in_its_own_units_where_too_little_was_measured():
    row = {"strength": 0.4, "verdicts": {"lost": "open"}, "n": {"lost": 400}}
    side = {"sign": 1, "min_useful": None, "default": None, "max_safe": 0.0, "strengths": [row]}
    told = {"rule": 2, "directions": {"elicit": side}}
    assert "at +0.2 it isn't settled" in in_words(rescaled(told, 2.0))
    assert "at -0.8 it isn't settled" in in_words(rescaled(told, -0.5))
    assert told["directions"]["elicit"]["strengths"] == [row]


def test_a_scaled_steering_keeps_its_range_in_its_own_units():
    doubled = steering().scaled(2.0)
    assert standing(doubled.meta.range).state == "beyond"  # 2 of what was safe to 1.2
    assert standing(doubled.meta.range, 0.6).state == "inside"
    turned = steering().scaled(-1.0)
    assert sides(turned.meta.range)["suppress"].sign == 1
    assert standing(turned.meta.range, 1.5).state == "inside" and standing(turned.meta.range, -1.5).state == "beyond"
    assert steering().scaled(0.0).meta.range is None
    back = steering().scaled(0.5).scaled(2.0)
    assert sides(back.meta.range)["elicit"] == sides(RANGE)["elicit"]


def test_a_range_travels_in_the_file_and_changes_no_digest(tmp_path):
    made = steering()
    made.save(tmp_path / "s.safetensors")
    read = Steering.load(tmp_path / "s.safetensors")
    assert read.meta.range == RANGE
    assert read.digest == steering(None).digest
    steering(None).save(tmp_path / "old.safetensors")
    assert Steering.load(tmp_path / "old.safetensors").meta.range is None


def test_the_card_on_the_hub_tells_it():
    assert "safe up to +1.2" in hub.card(steering(), "a/b", "x.safetensors")
    assert "range" not in hub.card(steering(None), "a/b", "x.safetensors")


def test_what_changes_the_behaviour_loses_the_range():
    other = steering(None, Ablate(torch.eye(4)[:1]))
    assert (steering() + other).meta.range is None
    assert steering().adopted(planted.engine()).meta.range is None


def test_generate_warns_beyond_and_strict_refuses(tmp_path, capsys):
    steering().save(tmp_path / "s.safetensors")
    steering(None).save(tmp_path / "old.safetensors")
    keep_to_range(opened([tmp_path / "s.safetensors"]), [0.0, 1.0], strict=True)
    assert capsys.readouterr().err == ""
    keep_to_range(opened([tmp_path / "s.safetensors"]), [1.5], strict=False)
    assert "warning" in (told := capsys.readouterr().err) and "beyond" in told
    keep_to_range(opened([tmp_path / "s.safetensors"]), [1.3], strict=False)
    assert "warning" in (told := capsys.readouterr().err) and "unresolved" in told
    keep_to_range(opened([tmp_path / "old.safetensors"]), [1.0], strict=False)
    assert "not calibrated" in capsys.readouterr().err
    for name, strength in (("s", 1.5), ("s", 1.3), ("old", 1.0)):
        with pytest.raises(EditError, match="--strict"):
            keep_to_range(opened([tmp_path / f"{name}.safetensors"]), [strength], strict=True)


# --- ranges of the rule before --------------------------------------------------------------------------------------------------

OLD = {
    "directions": {
        name: {k: v for k, v in side.items() if k != "max_unresolved"} for name, side in RANGE["directions"].items()
    },
    "budget": RANGE["budget"],
}


def test_a_range_of_the_rule_before_is_unresolved_where_it_called_safe_and_never_upgraded(tmp_path):
    assert standing(OLD, 0.8).state == "unresolved" and "older rule" in standing(OLD, 0.8).words
    assert not standing(OLD, 0.8).allowed and standing(OLD, 0.0).allowed
    assert standing(OLD, 1.5).state == "beyond"
    assert "safe" not in in_words(OLD).replace("took costs for safe", "") and "older rule" in in_words(OLD)
    steering(OLD).save(tmp_path / "old.safetensors")
    read = Steering.load(tmp_path / "old.safetensors")
    assert read.meta.range == OLD
    assert (
        read.scaled(2.0).meta.range.get("rule") is None
        and standing(read.scaled(2.0).meta.range, 0.4).state == "unresolved"
    )
    read.save(tmp_path / "again.safetensors")
    assert standing(Steering.load(tmp_path / "again.safetensors").meta.range, 0.8).state == "unresolved"
    with pytest.raises(EditError, match="older rule"):
        keep_to_range(opened([tmp_path / "old.safetensors"]), [0.8], strict=True)


def test_a_file_that_an_earlier_version_calibrated_loads_and_is_shown_as_what_it_is():
    read = Steering.load(GOLDEN / "range1.safetensors")
    assert read.meta.range["directions"]["elicit"]["max_safe"] > 0 and read.meta.range.get("rule") is None
    assert {phrase.state for phrase in phrases(read.meta.range)} <= {"unresolved", "over"}
    for side in sides(read.meta.range).values():
        assert not side.certified and side.tops[0] == 0.0


@pytest.mark.parametrize(
    ("told", "colour"),
    [(RANGE, "green"), (OLD, "yellow"), (None, "dim"),
     ({"rule": 2, "directions": {"elicit": {"sign": 1, "default": None, "max_safe": 0.0, "max_unresolved": 0.5}}}, "yellow"),
     ({"rule": 2, "directions": {"elicit": {"sign": 1, "default": None, "max_safe": 0.0, "max_unresolved": 0.0}}}, "red")],
)  # fmt: skip
def test_what_is_not_certified_has_a_word_and_a_colour_of_its_own(told, colour):
    shown = coloured(told)
    assert {str(span.style) for span in shown.spans} == {colour}
    assert ("unresolved" in shown.plain) == (colour == "yellow" or told is RANGE)


def test_a_card_says_what_is_unresolved_and_what_an_older_rule_made():
    markdown, html = card.card(steering(RANGE), None, name="s.safetensors")
    assert "unresolved up to" in markdown and "| elicit | +0.5 | +1 | +1.2 | +1.4 |" in markdown
    assert "Certified at level" in markdown and "unresolved up to" in html
    markdown, _ = card.card(steering(OLD), None, name="s.safetensors")
    assert "| elicit | +0.5 | +1 | +0 | +1.2 |" in markdown  # nothing is safe, and what was called so is unresolved
    assert "not certified by today's rule" in markdown and "Certified at level" not in markdown
