"""What the tests of readers share: real data where they are at hand, and files written here."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


def shared(*parts: str) -> Path:
    """A real data set; the test is skipped, saying so, where it isn't at hand."""
    root = Path(os.environ.get("STEERLAB_SHARED", HERE.parent.parent / "shared"))
    path = root.joinpath("data", *parts)
    if not path.exists():
        pytest.skip(f"no real data at {path} (set STEERLAB_SHARED to the folder that holds data/)")
    return path


def jsonl(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def table(path: Path, columns: dict[str, list[object]]) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    pq.write_table(pa.table(columns), path)
    return path
