"""What the tests of bad inputs share: an example, an error that says these words in this order, and what a folder holds."""

from __future__ import annotations

from pathlib import Path

import pytest

import steerlab as sl
from steerlab.errors import SteerlabError

ASK = sl.Example.ask("w1 w2", "w3")


def told(error: type[SteerlabError], *words: str):
    """The error's message has all these words, in this order."""
    import re

    return pytest.raises(error, match="(?s)" + ".*".join(re.escape(w) for w in words))


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())
