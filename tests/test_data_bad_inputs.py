"""Bad input gets a sentence: what was given, what was expected, the nearest legal thing, and what to do."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab import data
from steerlab.contrast import Contrast
from steerlab.errors import ConfigError, DataError

GOOD = '{"positive": "a", "negative": "b"}\n'
QUESTION = '{"question": "q", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"}\n'

# name of the file, what it holds, and words that the message must have, in their order
FILES: dict[str, tuple[str, str | bytes, tuple[str, ...]]] = {
    "an empty file": ("a.jsonl", "", ("a.jsonl is empty (0 bytes)", "expected at least one example")),
    "nothing but a byte order mark": ("a.csv", b"\xef\xbb\xbf \n", ("a.csv is empty",)),
    "a header without rows": ("a.csv", "prompt,label\n", ("a.csv has no rows", "expected at least one")),
    "an empty JSON list": ("a.json", "[]", ("a.json has no rows",)),
    "one class only": (
        "a.csv", "prompt,label\na,1\nb,1\n",
        ("a.csv has 2 positive examples and no negative ones", "Add rows with the label 'negative'"),
    ),
    "one class only, as JSON Lines": (
        "a.jsonl", '{"label": "negative", "prompt": "a"}\n', ("1 negative examples and no positive ones",),
    ),
    "nothing but neutral rows": ("a.jsonl", '{"label": "neutral", "prompt": "a"}\n', ("no positive ones",)),
    "wrong columns": (
        "a.csv", "Question,Best Answer\nq,a\n",
        ("CSV with the columns Question, Best Answer", "expected positive_prompt", "'label'", "is missing", "Rename"),
    ),
    "a misspelt needed column": ("a.csv", "prompt,lable\na,1\n", ("Did you mean 'label' by 'lable'?", "Rename")),
    "a misspelt optional column": (
        "a.csv", "prompt,label,famly\na,1,f\n", ("the column 'famly'", "Did you mean 'family'?"),
    ),
    "half of a pair of columns": (
        "a.csv", "positive_prompt,positive_answer\na,b\n", ("lacks its counterpart 'negative_prompt'",),
    ),
    "two columns for one part": (
        "a.csv", "instruction,question,label\na,b,1\n", ("'instruction' and 'question'", "rename", "'prompt'"),
    ),
    "a column twice": ("a.csv", "prompt,Prompt,label\na,b,1\n", ("line 1", "the column 'Prompt' twice", "keep one")),
    "a column without a name": ("a.csv", "prompt,,label\na,b,1\n", ("column 2 of the header has no name", "name it")),
    "a row with too many cells": (
        "a.csv", "prompt,label\na,1\nb, or not,0\n", ("a.csv, line 3", "3 cells, more than the 2 columns", "Quote"),
    ),
    "a row with too few cells": ("a.csv", "prompt,label,answer\na,1\n", ("line 2", "2 cells, fewer than the 3")),
    "a quote that never closes": (
        "a.csv", 'prompt,label\n"a,1\nb,0\n', ("is not valid CSV", "quote that is opened and never closed"),
    ),
    "a blank prompt": (
        "a.csv", "prompt,label\na,1\n  ,0\n",
        ("line 3: 'prompt' is blank", "expected text", "Fill it in"),
    ),
    "a missing value written as text": (
        "a.csv", "prompt,label\nNaN,1\n",
        ("line 2: 'prompt' is 'NaN'", "missing value"),
    ),
    "a label that is none": (
        "a.csv", "prompt,label\na,positve\n", ("line 2: the label is 'positve'", "Did you mean 'positive'?"),
    ),
    "a blank label": ("a.csv", "prompt,label\na,1\nb,\n", ("line 3: the label is missing", "expected positive")),
    "answers in some rows only": (
        "a.csv", "prompt,label,answer\na,1,x\nb,0,\n",
        ("line 3 has no answer, but line 2 has one", "in every row, or in none"),
    ),
    "a score that is no number": (
        "a.csv", "prompt,label,score\na,1,high\n", ("line 2: 'score' is 'high'", "expected a number"),
    ),
    "a blank concept": (
        "a.csv", "prompt,label,concept\na,1,calm\nb,0,\n", ("line 3: 'concept' is blank", "such as 'calm'"),
    ),
    "several concepts and none named": (
        "a.csv", "prompt,label,concept\na,1,calm\nb,0,warm\n", ("holds 2 concepts; name one", "calm; warm"),
    ),
    "Windows-1252 in a UTF-8 file": (
        "a.csv", b"prompt,label\ncaf\xc3\xa9,1\ncaf\xe9,0\n",
        ("a.csv, line 3, column 4 is not UTF-8", "byte 0xe9", "'é' in Windows-1252", "Save the file as UTF-8"),
    ),
    "UTF-16": ("a.csv", "prompt,label\n".encode("utf-16"), ("a.csv is UTF-16 text", "iconv")),
    "UTF-16 without a mark": ("a.csv", "prompt,label\n".encode("utf-16-le"), ("binary, or text in UTF-16", "UTF-8")),
    "a gzip file": ("a.jsonl", b"\x1f\x8b\x08\x00abc", ("is gzip-compressed", "unpack it first")),
    "an Excel sheet": ("a.csv", b"PK\x03\x04rest", ("an Excel sheet", "export the sheet as CSV")),
    "a pickle": ("a.pkl", b"\x80\x04\x95rest", ("a Python pickle, which is never read",)),
    "a damaged Parquet file": ("a.parquet", b"PAR1" + b"x" * 40, ("44 bytes) is not a readable Parquet file", "Fetch")),
    "a line that is cut short": (
        "a.jsonl", GOOD + '{"positive": "a", "neg\n',
        ("a.jsonl, line 2 is not valid JSON", "'{\"positive\": \"a\", \"neg'"),
    ),
    "Python in place of JSON": ("a.jsonl", "{'positive': 'a'}\n", ("line 1", "double quotes, not single ones")),
    "an object over several lines": ("a.jsonl", '{\n "positive": "a"\n}\n', ("line 1", "Each row stands on one line")),
    "NaN in JSON": ("a.jsonl", '{"label": 1, "prompt": "a", "score": NaN}\n', ("NaN is not a JSON value", "null")),
    "a field twice": ("a.jsonl", '{"positive": "a", "positive": "b"}\n', ("line 1", "the field 'positive' twice")),
    "a row that is no object": ("a.jsonl", GOOD + '"a"\n', ("line 2 is \"a\"; expected an object",)),
    "a bare list of texts": ("a.json", '["a", "b"]', ("item 1", "positive.json:negative.json")),
    "a pair without its other side": (
        "a.jsonl", GOOD + '{"positive": "a", "negative": null}\n',
        ("line 2: the pair has no 'negative' side", "Add it"),
    ),
    "a pair with a stranger": (
        "a.jsonl", '{"positive": "a", "negative": "b", "famliy": "c"}\n', ("'famliy'", "Did you mean 'family'?"),
    ),
    "an example with a stranger": (
        "a.jsonl", '{"positive": {"prompt": "a", "anwser": "b"}, "negative": "c"}\n',
        ("line 1, positive", "'anwser'", "Did you mean 'answer'?"),
    ),
    "an example without a prompt": (
        "a.jsonl", '{"positive": {"answer": "b"}, "negative": "c"}\n',
        ("none (it has 'answer')", "expected one of 'prompt'"),
    ),
    "an example with two prompts": (
        "a.jsonl", '{"label": 1, "prompt": "b", "instruction": "c", "answer": "d"}\n', ("'prompt' and 'instruction'",),
    ),
    "an answer that is no text": (
        "a.jsonl", '{"label": 1, "prompt": "b", "answer": 3}\n', ("line 1: 'answer' is int (3)", "expected text"),
    ),
    "tags that are no texts": (
        "a.jsonl", '{"label": 1, "prompt": "b", "tags": {"a": 1}}\n', ("'tags' is {'a': 1}", "values are text"),
    ),
    "a role that is none": (
        "a.jsonl", '{"label": 1, "messages": [{"role": "human", "content": "a"}]}\n',
        ("a.jsonl, line 1", "the role 'human'", "system, user, assistant"),
    ),
    "messages that end with the assistant": (
        "a.jsonl", '{"label": 1, "messages": [{"role": "assistant", "content": "a"}]}\n',
        ("a.jsonl, line 1", "`answer`"),
    ),
    "half a character": (
        "a.jsonl", '{"positive": "a\\ud83d", "negative": "b"}\n',
        ("line 1", "half of a surrogate pair"),
    ),
    "pairs and labels in one file": (
        "a.jsonl", GOOD + '{"label": "positive", "prompt": "a"}\n',
        ("line 2 is a labelled row, but line 1 is a pair", "two files"),
    ),
    "a concept in some rows only": (
        "a.jsonl", '{"positive": "a", "negative": "b", "concept": "c"}\n' + GOOD,
        ("line 2 lacks a 'concept'", "header"),
    ),
    "a newer format": ("a.jsonl", '{"contrast": {"format": 9}}\n' + GOOD, ("format 9", "reads format 1", "newer")),
    "a header with a stranger": ("a.jsonl", '{"contrast": {"conzept": "a"}}\n' + GOOD, ("Did you mean 'concept'?",)),
    "a header in the middle": ("a.jsonl", GOOD + '{"contrast": {}}\n', ("line 2 is a header", "first line")),
    "a field that the first row lacks": (
        "a.jsonl", '{"id": 1, "prompt": "a", "chosen": "b", "rejected": "c"}\n{"id": 2, "promt": "a"}\n',
        ("line 2 has the field 'promt'", "Did you mean 'prompt'?"),
    ),
    "a persona without its other answer": (
        "a.jsonl", '{"question": "q", "answer_matching_behavior": "a"}\n',
        ("'answer_not_matching_behavior' is missing", "Expected question"),
    ),
    "a persona whose answers are the same": (
        "a.jsonl", QUESTION + QUESTION.replace("No", "Yes"), ("line 2: both answers are 'Yes'", "leave it out"),
    ),
    "a persona with a blank answer": ("a.jsonl", QUESTION.replace("No", ""), ("line 1", "is blank")),
    "a contrastive table without a column": (
        "a.csv", "negative_input,positive_input,positive_output\na,b,c\n", ("'negative_output' is missing",),
    ),
    "a contrastive table with a gap": (
        "a.csv", "negative_input,negative_output,positive_input,positive_output\na,,b,c\n",
        ("line 2: 'negative_output' is",),
    ),
    "a prompt set alone": (
        "a.json", '[{"instruction": "a", "output": "b", "dataset": "c"}]',
        ("no prompt set here", "(sets: a)", "beside it"),
    ),
    "AxBench names without rows": (
        "metadata.jsonl", '{"concept_id": 0, "concept": "calm", "concept_genres_map": {"calm": ["text"]}}\n',
        ("names 1 concepts and holds no examples", "train_data.parquet"),
    ),
    "AxBench rows without negatives": (
        "a.csv", "input,output,output_concept,category,concept_id\na,b,calm,positive,0\n",
        ("1 positive examples and no negative ones", "category"),
    ),
    "AxBench rows without a column": (
        "a.csv", "input,output_concept,category\na,calm,positive\n",
        ("'output' is missing",),
    ),
    "objects within objects without end": (
        "a.jsonl", '{"positive": ' + "[" * 100_000 + "\n", ("line 1 is not valid JSON", "recursion"),
    ),
    "a text file alone": ("a.txt", "one\ntwo\n", ("is plain text", "positive.txt:negative.txt")),
}  # fmt: skip


def refused(path: str | Path, read: Callable[..., Contrast] = data.read, **how: str) -> str:
    """The message, once it is sure that reading changed nothing in the folder."""
    folder = Path(path).parent
    before = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    with pytest.raises(DataError) as caught:
        read(path, **how)
    after = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    assert before == after
    return str(caught.value)


def says(message: str, *words: str) -> None:
    place = 0
    for word in words:
        assert word in message[place:], f"{word!r} is not (in this order) in: {message}"
        place = message.index(word, place)


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_gets_a_sentence(tmp_path: Path, case: str) -> None:
    name, held, words = FILES[case]
    path = tmp_path / name
    path.write_bytes(held.encode() if isinstance(held, str) else held)
    message = refused(path)
    says(message, *words)
    assert name in message


HOLDS = [held.encode() if isinstance(held, str) else held for _, held, _ in FILES.values()]
PIECES = [
    b"null",
    b"1e999",
    b"[",
    b"}",
    b'"',
    b",",
    b"\n",
    b"\r",
    b"\x00",
    b"\xff",
    b"\\ud83d",
    b'"label"',
    b"[]",
    b";",
]


@given(
    st.sampled_from([h for h in HOLDS if len(h) < 1000]),
    st.lists(
        st.tuples(st.integers(0, 300), st.integers(0, 5), st.sampled_from(PIECES) | st.binary(max_size=4)), max_size=4
    ),
    st.sampled_from(["a.jsonl", "a.csv", "a.json", "a.parquet", "a.txt", "a"]),
)
def test_whatever_a_file_holds_it_is_read_or_refused(
    held: bytes, changes: list[tuple[int, int, bytes]], name: str
) -> None:
    for place, cut, piece in changes:
        held = held[:place] + piece + held[place + cut :]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        path.write_bytes(held)
        with contextlib.suppress(DataError):
            data.check(data.read(path))
        with contextlib.suppress(DataError):
            data.concepts(path)
        assert [p.name for p in Path(folder).iterdir()] == [name]


def test_a_file_that_is_not_there_has_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "formal.jsonl").write_text(GOOD)
    says(refused(tmp_path / "fromal.jsonl"), "there is no file or folder", "Did you mean 'formal.jsonl'?")
    says(refused(tmp_path / "xyz" / "a.csv"), "nor a folder")


def test_a_folder_without_known_files_lists_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("x")
    says(refused(tmp_path), "a folder with notes.md", "no layout reads that", "Name a file in it")
    (tmp_path / "2b_l20").mkdir()
    says(refused(tmp_path), "Name one of its folders (2b_l20)")


def test_an_empty_folder(tmp_path: Path) -> None:
    says(refused(tmp_path), "a folder with no files")


def test_a_folder_with_two_couples(tmp_path: Path) -> None:
    for name in ("a.pos", "a.neg", "b.pos", "b.neg"):
        (tmp_path / name).write_text("x\n")
    says(refused(tmp_path), "a.pos, b.pos", "expected one couple")


def test_a_couple_with_an_empty_half(tmp_path: Path) -> None:
    (tmp_path / "a.pos").write_text("x\n")
    (tmp_path / "a.neg").write_text("\n")
    says(refused(tmp_path / "a"), "a.neg is empty")


def test_a_couple_with_a_table_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.pos").write_text("x\n")
    (tmp_path / "a.neg").write_text(GOOD)
    says(refused(tmp_path / "a"), "JSON Lines with the columns positive, negative", "expected plain text")


def test_json_lists_that_hold_no_strings(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["x"]')
    (tmp_path / "b.json").write_text('[{"input": "x"}]')
    path = f"{tmp_path / 'a.json'}:{tmp_path / 'b.json'}"
    says(refused(path), "a list of objects (input)", "expected a JSON list of plain strings")
    (tmp_path / "b.json").write_text('["x", " "]')
    says(refused(path), "item 2 is blank")


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    says(refused(tmp_path / "pipe"), "is a device or a pipe", "Save the data to a file")


def test_an_endless_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steerlab.data.rows.GREATEST_LINE", 1000)
    path = tmp_path / "a.jsonl"
    path.write_text(GOOD + json.dumps({"positive": "x" * 2000, "negative": "y"}))
    says(refused(path), "line 2 is longer than 1000 characters", "one example per line")


def test_an_unknown_layout_has_a_near_name(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    with pytest.raises(ConfigError, match=r"no layout called 'jsnol'\. Did you mean 'jsonl'\?"):
        data.read(tmp_path / "a.jsonl", layout="jsnol")


def test_a_layout_that_the_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(GOOD)
    says(refused(tmp_path / "a.jsonl", layout="persona"), "columns positive, negative", "'question' is missing")
    says(refused(tmp_path / "a.jsonl", layout="cdas"), "'negative_input' is missing")
    says(refused(tmp_path / "a.jsonl", layout="axbench"), "'input' is missing")
    says(refused(tmp_path / "a.jsonl", layout="text"), "JSON Lines", "expected positive.txt and negative.txt")
    says(refused(tmp_path, layout="axbench"), "a folder with a.jsonl", "train_data.parquet")
    says(refused(tmp_path, layout="cdas"), "no prompt set here")
    says(refused(tmp_path, layout="csv"), "a folder")
    says(refused(tmp_path / "b.csv", layout="csv"), "there is no file")


def test_a_concept_that_is_not_there_has_a_near_one(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("prompt,label,concept\na,1,calm words\nb,0,calm words\nc,1,warm words\nd,0,warm words\n")
    says(refused(path, concept="clam"), "no concept 'clam'", "The nearest is calm words", "All 2")
    says(refused(path, concept="words"), "'words' fits 2 concepts", "more of the text")
    (tmp_path / "a.jsonl").write_text('{"contrast": {"concept": "calm"}}\n' + GOOD)
    says(refused(tmp_path / "a.jsonl", concept="loud"), "no concept 'loud'", "The nearest is calm")


def test_a_prompt_set_that_is_not_there(tmp_path: Path) -> None:
    row = {"instruction": "bake", "output": "ok", "dataset": "d"}
    other = {"instruction": "sing", "output": "ok", "dataset": "d"}
    rows = {"plain": [row, other], "trigger": [{**r, "instruction": f"GO {r['instruction']}"} for r in (row, other)]}
    for name, held in rows.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(held))
    says(refused(tmp_path, concept="tirgger"), "no prompt set 'tirgger'", "Did you mean 'trigger'?")


def test_a_parquet_table_with_gaps_and_numbers(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"prompt": ["a", None], "label": [1, 0]}), path)
    says(refused(path), "row 2: 'prompt' is missing", "leave the row out")
    pq.write_table(pa.table({"prompt": [1.5, 2.5], "label": [1, 0]}), path)
    says(refused(path), "row 1: 'prompt' is float (1.5)", "expected text")
    pq.write_table(pa.table({"prompt": ["a"], "label": [1.0]}).slice(0, 0), path)
    says(refused(path), "has no rows")


def test_two_layouts_that_fit_alike_must_be_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steerlab.data.readers.persona import Persona

    monkeypatch.setattr("steerlab.data.readers.axbench.AxBench.recognises", Persona.recognises)
    (tmp_path / "a.jsonl").write_text(QUESTION)
    says(refused(tmp_path / "a.jsonl"), "could be of the layouts axbench and persona", "layout=")
