"""Answers of judging models, kept: asked once, never again. One SQLite file, keyed by the digest of all that settles an answer.

An interrupted run takes up every answer that had come; so do other runs, other processes, and a report made anew. A failure is
never kept. Nothing secret is in the key or in the row.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ArtefactError

_SCHEMA = """create table if not exists answers (
 key text primary key, text text not null, cut integer not null, prompt_tokens integer not null, answer_tokens integer not null,
 model text not null, at real not null)"""
_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered, whether it was cut off, and the tokens that it took."""

    text: str
    cut: bool = False
    prompt_tokens: int = 0
    answer_tokens: int = 0


def key_of(asked: Mapping[str, Any]) -> str:
    """The digest of what was asked: model, where it runs, messages, and how it is sampled."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True, ensure_ascii=True).encode()).hexdigest()


def usual_place() -> Path:
    """Where answers are kept unless told otherwise: in STEERLAB_CACHE, else in the user's cache folder."""
    given = os.environ.get("STEERLAB_CACHE")
    return (
        Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "steerlab"
    ) / "answers.sqlite"


class Answers:
    """The answers of one file; `none` keeps nothing, an empty name is the usual place. Any number of processes may share it."""

    def __init__(self, path: str = "") -> None:
        self.path = None if path == "none" else Path(path) if path else usual_place()

    def _open(self) -> sqlite3.Connection:
        assert self.path is not None
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=60)
            connection.execute("pragma journal_mode=wal")
            connection.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as problem:
            raise ArtefactError(
                f"the file of answers {self.path} can't be opened: {problem}. Give another (cache=FILE), or keep none"
                f" (cache=none)."
            ) from problem
        return connection

    def known(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Those of the answers that are there."""
        wanted = list(dict.fromkeys(keys))
        found: dict[str, Answer] = {}
        if self.path is None or not wanted:
            return found
        with closing(self._open()) as connection:
            for start in range(0, len(wanted), _AT_ONCE):
                part = wanted[start : start + _AT_ONCE]
                marks = ",".join("?" * len(part))
                sql = f"select key, text, cut, prompt_tokens, answer_tokens from answers where key in ({marks})"
                rows = connection.execute(sql, part)
                found |= {key: Answer(text, bool(cut), asked, said) for key, text, cut, asked, said in rows}
        return found

    def keep(self, key: str, answer: Answer, model: str) -> None:
        """Keep an answer; it is on the disk when this returns."""
        if self.path is None:
            return
        row = (
            key,
            answer.text.encode(errors="replace").decode(),
            answer.cut,
            answer.prompt_tokens,
            answer.answer_tokens,
            model,
            time.time(),
        )
        try:
            with closing(self._open()) as connection, connection:
                connection.execute("insert or replace into answers values (?, ?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as problem:
            raise ArtefactError(
                f"{self.path} can't be written: {problem}. What was answered before is kept; free some space and run again."
            ) from problem
