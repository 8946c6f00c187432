"""What is held out: a text's hash says whether the language model may be trained on it."""

from __future__ import annotations

import hashlib
import random

from ..errors import DataError, nearest

SPLITS = ("train", "dev", "test")


def bucket(text: str) -> str:
    """The split of an item, by its text alone: 6 % test, 3 % dev, the rest train, in every process and version."""
    n = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) % 100
    return "test" if n < 6 else "dev" if n < 9 else "train"


def checked_split(split: str) -> str:
    """The split, or a `DataError` that names the legal ones."""
    if split not in SPLITS:
        raise DataError(f"the split is {split!r}; expected one of {', '.join(SPLITS)}. {nearest(split, SPLITS)}")
    return split


def stream(*key: object) -> random.Random:
    """A random generator for a key such as (variant, seed, split), the same in every process."""
    digest = hashlib.blake2b("/".join(map(str, key)).encode(), digest_size=8).digest()
    return random.Random(int.from_bytes(digest))
