"""Layouts of one's own: JSON lines, tables, plain texts and somebody else's; published ones are in test_data_published.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from layouts import jsonl, shared, table
from steerlab import data, plugins
from steerlab.contrast import Contrast, Example, Message
from steerlab.data.readers.base import Reader
from steerlab.data.rows import Found
from steerlab.errors import DataError

PAIRS = {
    "positive_prompt": ["say it kindly", "kindly, too"],
    "positive_answer": ["dear", "my dear"],
    "negative_prompt": ["say it", "this, too"],
    "negative_answer": ["you", "hey"],
}

# --- our own --------------------------------------------------------------------------------------------------------


def test_pairs_of_plain_texts_are_user_turns(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"positive": "be kind", "negative": "be rude", "family": "be"})
    contrast = data.read(path)
    assert contrast.paired
    assert contrast.pairs == ((Example.ask("be kind", family="be"), Example.ask("be rude", family="be")),)


def test_labelled_rows_with_prompt_instruction_or_messages(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"label": "positive", "prompt": "a", "system": "s", "answer": "x", "score": 1, "tags": {"k": "v"}},
        {"label": 0, "instruction": "b"},
        {"label": "negative", "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "c"}]},
        {"label": "neutral", "prompt": "d"},
    )
    contrast = data.read(path, concept="kind")
    assert contrast.positive[0].messages == (Message("system", "s"), Message("user", "a"))
    assert contrast.positive[0].score == 1
    assert contrast.positive[0].tags == {"k": "v"}
    assert [e.instruction for e in contrast.negative] == ["b", "c"]
    assert [e.instruction for e in contrast.neutral] == ["d"]
    assert not contrast.paired
    assert contrast.concept == "kind"


def test_a_header_names_the_concept(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"contrast": {"concept": "calm"}}, {"positive": "a", "negative": "b"})
    assert data.read(path).concept == "calm"
    assert data.concepts(path) == (data.Concept(None, "calm"),)


def test_rows_that_name_concepts_are_picked_and_neutral_ones_serve_all(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path / "a.jsonl",
        {"positive": "a", "negative": "b", "concept": "calm"},
        {"positive": "c", "negative": "d", "concept": "warm"},
        {"label": "neutral", "prompt": "e"},
    )
    contrast = data.read(path, concept="warm")
    assert (contrast.positive[0].instruction, contrast.concept, len(contrast.neutral)) == ("c", "warm", 1)
    assert [c.name for c in data.concepts(path)] == ["calm", "warm"]


def test_a_json_list_is_read_like_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"positive": "a", "negative": "b"}], indent=2))
    assert data.read(path).pairs[0][0].instruction == "a"


def test_a_byte_order_mark_blank_lines_and_dos_line_ends_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"positive": "a", "negative": "b"}\r\n\r\n{"positive": "c", "negative": "d"}\r\n')
    assert [p.instruction for p in data.read(path).positive] == ["a", "c"]


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"positive": "a\u2028b\x85c", "negative": "d"})
    assert data.read(path).positive[0].instruction == "a\u2028b\x85c"


# --- tables ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_pairs_whatever_separates_them(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.csv"
    rows = [list(PAIRS), *zip(*PAIRS.values(), strict=True)]
    path.write_text("\n".join(delimiter.join(f'"{cell}"' for cell in row) for row in rows))
    contrast = data.read(path)
    assert contrast.paired
    assert contrast.pairs[1] == (Example.ask("kindly, too", "my dear"), Example.ask("this, too", "hey"))


def test_csv_and_parquet_give_the_same_contrast(tmp_path: Path) -> None:
    text = "\n".join(",".join(f'"{c}"' for c in row) for row in [list(PAIRS), *zip(*PAIRS.values(), strict=True)])
    (tmp_path / "a.csv").write_text(text)
    parquet = table(tmp_path / "a.parquet", {name: list(cells) for name, cells in PAIRS.items()})
    assert data.read(tmp_path / "a.csv").digest() == data.read(parquet).digest()


def test_other_columns_become_tags_and_quoted_line_breaks_stay(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('Instruction,Response,Label,Family,Topic\n"two\nlines",yes,1,f,t\nb,no,0,,\n')
    contrast = data.read(path)
    assert contrast.positive == (Example.ask("two\nlines", "yes", family="f", tags={"Topic": "t"}),)
    assert contrast.negative == (Example.ask("b", "no"),)


@pytest.mark.parametrize(
    "names", [("chosen", "rejected"), ("winning_output", "losing_output"), ("positive", "negative")]
)
def test_preferences_are_pairs_of_one_prompt(tmp_path: Path, names: tuple[str, str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"prompt,{names[0]},{names[1]}\nask,good,bad\n")
    assert data.read(path, layout="csv").pairs == ((Example.ask("ask", "good"), Example.ask("ask", "bad")),)


def test_preferences_in_json_lines_are_read_as_a_table(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"id": 7, "prompt": "ask", "chosen": "good", "rejected": "bad"})
    assert data.read(path).pairs[0][0] == Example.ask("ask", "good", tags={"id": "7"})


def test_a_table_of_several_concepts_is_picked_from(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,label,concept\na,1,calm\nb,0,calm\nc,1,warm\nd,0,warm\ne,neutral,\n")
    contrast = data.read(path, concept="WARM")
    assert [e.instruction for e in (*contrast.positive, *contrast.negative, *contrast.neutral)] == ["c", "d", "e"]
    assert [(c.name, c.rows) for c in data.concepts(path)] == [("calm", 2), ("warm", 2)]


def test_the_whole_name_goes_before_a_part_of_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,label,concept\na,1,calm\nb,0,calm\nc,1,calm words\nd,0,calm words\n")
    assert data.read(path, concept=" CALM").positive[0].instruction == "a"


@pytest.mark.parametrize(
    ("yes", "no"), [("1", "0"), ("1", "-1"), ("True", "False"), ("POS", "neg"), ("yes", "no"), ("positive", "negative")]
)
def test_labels_as_people_write_them(tmp_path: Path, yes: str, no: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"text,label\na,{yes}\nb,{no}\n")
    contrast = data.read(path)
    assert (contrast.positive[0].instruction, contrast.negative[0].instruction) == ("a", "b")


def test_a_table_of_another_name_is_read_when_the_layout_is_named(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("prompt,label\na,1\nb,0\n")
    assert len(data.read(path, layout="csv")) == 1


def test_scores_and_systems_of_a_table(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,label,score,system\na,1,0.5,s\nb,0,,\n")
    contrast = data.read(path)
    assert contrast.positive[0].score == 0.5
    assert contrast.positive[0].messages[0] == Message("system", "s")
    assert contrast.negative[0].score is None


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = table(tmp_path / "a.parquet", {name: list(cells) for name, cells in PAIRS.items()})
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DataError, match=r"pip install 'steerlab\[data\]'"):
        data.read(path)


# --- plain texts ----------------------------------------------------------------------------------------------------


def couple(folder: Path, positive: str, negative: str) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / positive).write_text("sun\n\n  warm day \n", encoding="utf-8")
    (folder / negative).write_text("rain\n", encoding="utf-8")
    return folder


def expected(contrast: Contrast) -> bool:
    sides = [[e.instruction for e in side] for side in (contrast.positive, contrast.negative)]
    return sides == [["sun", "warm day"], ["rain"]] and not contrast.paired


def test_two_files_named_together(tmp_path: Path) -> None:
    folder = couple(tmp_path, "a.txt", "b.txt")
    assert expected(data.read(f"{folder / 'a.txt'}:{folder / 'b.txt'}"))


@pytest.mark.parametrize("names", [("positive.txt", "negative.txt"), ("pos.txt", "neg.txt"), ("w.pos", "w.neg")])
def test_a_folder_with_a_couple_or_either_of_its_files(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = couple(tmp_path / "weather", *names)
    for path in (folder, folder / names[0], folder / names[1]):
        assert expected(data.read(path)), path


def test_a_common_name_without_the_suffixes(tmp_path: Path) -> None:
    assert expected(data.read(couple(tmp_path, "w.pos", "w.neg") / "w"))


def test_json_lists_of_strings_two_at_a_time(tmp_path: Path) -> None:
    for name, texts in (("a.json", ["sun", "warm day"]), ("b.json", ["rain"])):
        (tmp_path / name).write_text(json.dumps(texts))
    assert expected(data.read(f"{tmp_path / 'a.json'}:{tmp_path / 'b.json'}"))


def test_polarity_sentences() -> None:
    contrast = data.read(shared("sentiment_sentences"), concept="sentiment")
    assert (len(contrast.positive), len(contrast.negative), contrast.concept) == (4000, 4000, "sentiment")
    assert contrast.digest() == data.read(shared("sentiment_sentences") / "polarity_first4000").digest()


def test_emotions_and_facts() -> None:
    emotions = shared("repe_emotions")
    assert len(data.read(f"{emotions / 'anger.json'}:{emotions / 'fear.json'}")) == 203
    facts = data.read(shared("true_facts", "facts_true_false.csv"))
    assert (len(facts.positive), len(facts.negative)) == (306, 306)


# --- the package ----------------------------------------------------------------------------------------------------


def test_contrast_read_goes_through_the_readers(tmp_path: Path) -> None:
    path = jsonl(tmp_path / "a.jsonl", {"positive": "a", "negative": "b"})
    assert Contrast.read(path) == data.read(path)


def test_every_layout_says_what_it_is_for() -> None:
    known = data.layouts()
    assert [layout.name for layout in known] == ["axbench", "cdas", "csv", "jsonl", "parquet", "persona", "text"]
    assert all(layout.what and layout.expects for layout in known)


class Shouting(Reader):
    """A layout of somebody else's: every line a positive prompt, and the same in small letters a negative one."""

    what = "capital letters"
    expects = "SHOUTING, one prompt per line"

    def recognises(self, found: Found) -> bool:
        return found.path.suffix == ".loud"

    def read(self, found: Found, *, concept: str | None = None) -> Contrast:
        texts = found.path.read_text().split()
        sides = (tuple(map(Example.ask, texts)), tuple(Example.ask(t.lower()) for t in texts))
        return Contrast(*sides, paired=True, concept=concept or "loud")


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The layout `shouting`, as an entry point of the group steerlab.readers."""
    entry = EntryPoint("shouting", f"{__name__}:Shouting", "steerlab.readers")
    monkeypatch.setattr(EntryPoint, "load", lambda self: Shouting)
    monkeypatch.setattr(plugins, "_entries", lambda folder: {"shouting": entry} if folder == "data.readers" else {})
    for cached in (plugins.names, plugins.load):
        cached.cache_clear()
    yield
    for cached in (plugins.names, plugins.load):
        cached.cache_clear()


def test_a_layout_of_somebody_else_is_recognised_and_can_be_named(plugged: None, tmp_path: Path) -> None:
    path = tmp_path / "a.loud"
    path.write_text("HEY YOU")
    assert [p.instruction for p in data.read(path).positive] == ["HEY", "YOU"]
    assert data.read(path, layout="shouting").concept == "loud"
    assert "shouting" in [layout.name for layout in data.layouts()]


def test_reading_loads_neither_torch_nor_pyarrow() -> None:
    code = (
        "import sys, steerlab.data as d; d.layouts();"
        "print(*sorted({'torch', 'transformers', 'pyarrow'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_large_file_is_read_row_by_row(tmp_path: Path) -> None:
    """The first row is enough to recognise a layout: what comes later is not touched."""
    path = jsonl(tmp_path / "a.jsonl", {"question": "q", "answer_matching_behavior": "a"})
    with path.open("ab") as file:
        file.write(b"\xff" * 100)
    from steerlab.data.rows import look

    assert look(str(path)).columns == ("question", "answer_matching_behavior")
