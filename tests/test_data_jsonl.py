"""What is written is what is read: the same contrast, the same digest, and nothing half-written."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steerlab import data, files
from steerlab.contrast import Contrast, Example, Message
from steerlab.errors import ArtefactError, DataError

text = st.text(max_size=20)
users = st.builds(Message, st.just("user"), text)
turns = st.lists(st.builds(Message, st.sampled_from(["system", "user", "assistant"]), text), max_size=3)
examples = st.builds(
    Example,
    st.builds(lambda before, last: (*before, last), turns, users),
    st.none() | text,
    st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.integers(-5, 5),
    st.none() | text,
    st.dictionaries(text, text, max_size=2),
)
sides = st.lists(examples, min_size=1, max_size=4).map(tuple)
neutral = st.lists(examples, max_size=2).map(tuple)
unpaired = st.builds(Contrast, sides, sides, st.just(False), text, text, neutral)


def paired(rows: list[tuple[Example, Example]], concept: str, rest: tuple[Example, ...]) -> Contrast:
    positive, negative = zip(*rows, strict=True)
    return Contrast(positive, negative, True, concept, "here", rest)


pairs = st.builds(paired, st.lists(st.tuples(examples, examples), min_size=1, max_size=4), text, neutral)


@given(unpaired | pairs)
def test_a_contrast_survives_writing_and_reading(contrast: Contrast) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "contrast.jsonl"
        data.write(contrast, path)
        again = data.read(path)
    assert again == contrast
    assert again.digest() == contrast.digest()


@given(pairs)
def test_writing_twice_gives_the_same_bytes(contrast: Contrast) -> None:
    with tempfile.TemporaryDirectory() as folder:
        first, second = Path(folder) / "a.jsonl", Path(folder) / "b.jsonl"
        data.write(contrast, first)
        data.write(data.read(first), second)
        assert first.read_bytes() == second.read_bytes()


def small() -> Contrast:
    return Contrast((Example.ask("a", "b"),), (Example.ask("c", "d"),), paired=True)


def test_half_a_character_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")
    bad = Contrast((Example.ask("a"), Example.ask("\ud83d")), (Example.ask("c"),))
    with pytest.raises(DataError, match="half of a surrogate pair"):
        data.write(bad, path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(ArtefactError, match="no space left"):
        data.write(small(), path)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_folder_that_does_not_exist_is_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.jsonl"
    data.write(small(), path)
    assert data.read(path).digest() == small().digest()
