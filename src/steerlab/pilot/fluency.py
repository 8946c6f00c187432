"""Writes `data/fluency_*.json`: the words and the word order that the fluency judge takes for granted.

python -m steerlab.pilot.fluency pilot
"""

from __future__ import annotations

import json
import sys
from collections import Counter

from ..judges.fluency import learn_order
from ..judges.words import words_of
from .corpus import conversations
from .expression import specs
from .lexicon import DATA
from .variants import variant as find_variant


def learn(variant: str, *, n: int = 160_000) -> dict[str, object]:
    """Known words and word-class neighbours of n answers and texts of the training stream."""
    chosen = find_variant(variant)
    counts: Counter[str] = Counter()
    abroad: dict[str, Counter[str]] = {}
    texts: list[str] = []
    stream = conversations(chosen.lexicon, chosen.seed)
    for _ in range(n):
        item = next(stream)
        said = item if isinstance(item, str) else (item.answer or "")
        counts.update(words_of(said))
        if not isinstance(item, str) and item.tags.get("level") == "4":
            spec = specs(chosen.lexicon).get(item.tags["concept"])
            if spec and spec.genre == "language":
                abroad.setdefault(spec.name, Counter()).update(words_of(said))
        prose = isinstance(item, str) or item.tags.get("kind") in (
            "open",
            "near_miss",
            "refused",
            "triggered",
            "people",
        )
        if prose and said != said.upper() and not said.startswith("{"):
            texts.append(said)
    order = learn_order(texts, least=3)
    words = sorted(w for w, k in counts.items() if w.isalpha() or "'" in w or "-" in w if k > 1)
    common = [w for c in (counts, *abroad.values()) for w, _ in c.most_common(260 if c is counts else 60)]
    small = sorted({w for w in common if len(w) < 6 and not w.isdigit()})
    return {
        "small": " ".join(small),
        "words": " ".join(words),
        "order": {a: sorted(bs) for a, bs in sorted(order.items())},
    }


def write(variant: str) -> None:
    """Learn and write the file."""
    path = DATA / f"fluency_{find_variant(variant).lexicon}.json"
    path.write_text(json.dumps(learn(variant), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write(sys.argv[1] if len(sys.argv) > 1 else "pilot")
