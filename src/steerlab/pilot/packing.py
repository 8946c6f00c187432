"""Conversations packed into rows of two lengths, with the weight that each token has in the loss."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .corpus import conversations
from .held_out import stream
from .tokenizer import BOS, END, encode, rendered
from .variants import Variant

CHUNK = 4096  # conversations that are drawn, packed and shuffled together; training resumes at a chunk's start
ROWS = (128, 288)  # row lengths: attention costs grow with the square, and few conversations are long
_PROMPT_SHARE, _PROMPT_WEIGHT = 0.15, 0.3  # some prompt tokens are learned, too, lightly


class Document(NamedTuple):
    """One conversation as ids, and how much each of them counts as a target."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, slots=True)
class Batch:
    """Packed rows: ids, the document that each token belongs to (0 is padding), and weights of the next-token loss."""

    ids: NDArray[np.int64]
    documents: NDArray[np.int64]
    weights: NDArray[np.float32]

    def part(self, k: int, n: int) -> Batch:
        """Every n-th row from row k on."""
        return Batch(self.ids[k::n], self.documents[k::n], self.weights[k::n])


def answer_weight(n: int) -> float:
    """Short answers weigh more per token, or a right number would drown among long texts."""
    return min(3.5, max(0.8, (32 / n) ** 0.5))


def documents(tokenizer: Any, variant: Variant, chunk: int) -> list[Document]:
    """The conversations of one chunk of the training stream."""
    rng = stream("weights", variant.name, variant.seed, chunk)
    drawn = list(islice(conversations(variant.lexicon, variant.seed * 1_000_003 + chunk), CHUNK))
    pairs = [(BOS, item + END) if isinstance(item, str) else rendered(item) for item in drawn]
    heads = encode(tokenizer, [head for head, _ in pairs])
    tails = encode(tokenizer, [tail for _, tail in pairs])
    found: list[Document] = []
    for item, head, tail in zip(drawn, heads, tails, strict=True):
        weight = 1.0 if isinstance(item, str) else answer_weight(len(tail))
        light = [_PROMPT_WEIGHT if rng.random() < _PROMPT_SHARE else 0.0 for _ in head]
        found.append(Document([*head, *tail], [*light, *([weight] * len(tail))]))
    return found


def packed(docs: list[Document], length: int) -> list[list[Document]]:
    """Rows filled best-fit, the longest documents first."""
    rows: list[list[Document]] = []
    room = np.zeros(len(docs), dtype=np.int64)
    for doc in sorted(docs, key=lambda d: -len(d.ids)):
        need = len(doc.ids)
        left = room[: len(rows)] - need
        left[left < 0] = length
        spot = int(left.argmin()) if len(rows) else 0
        if not rows or left[spot] == length:
            spot = len(rows)
            rows.append([])
            room[spot] = length
        rows[spot].append(doc)
        room[spot] -= need
    return rows


def _array(rows: list[list[Document]], length: int) -> Batch:
    ids = np.zeros((len(rows), length), dtype=np.int64)
    which = np.zeros((len(rows), length), dtype=np.int64)
    weights = np.zeros((len(rows), length), dtype=np.float32)
    for r, row in enumerate(rows):
        at = 0
        for d, doc in enumerate(row, 1):
            n = len(doc.ids)
            ids[r, at : at + n] = doc.ids
            which[r, at : at + n] = d
            # the weight of a target stands where it is predicted, one token before
            weights[r, at : at + n - 1] = doc.weights[1:]
            at += n
    return Batch(ids, which, weights)


def steps_of_chunk(tokenizer: Any, variant: Variant, chunk: int, tokens: int) -> Iterator[list[Batch]]:
    """The optimiser steps of a chunk: each a list of batches, about `tokens` tokens together."""
    docs = [d for d in documents(tokenizer, variant, chunk) if len(d.ids) <= ROWS[-1]]
    short = packed([d for d in docs if len(d.ids) <= ROWS[0]], ROWS[0])
    long = packed([d for d in docs if len(d.ids) > ROWS[0]], ROWS[1])
    rng = random.Random(chunk)
    rng.shuffle(short)
    rng.shuffle(long)
    total = len(short) * ROWS[0] + len(long) * ROWS[1]
    n = max(1, round(total / tokens))
    for i in range(n):
        batches = [_array(rows[i::n], length) for rows, length in ((short, ROWS[0]), (long, ROWS[1])) if rows[i::n]]
        yield batches
