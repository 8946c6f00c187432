"""How a writer is best asked for a trait: a dozen wordings are tried, and those that work are kept.

Nobody has said yet how the trait is told. But answers that show it have something in common that plain answers lack, whatever
the wording; what is told from plain answers by that is taken to have worked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..contrast import Example
from ..data.requests import ELICIT, SHORT, asked
from ..engines.base import Sampling
from ..errors import DataError
from ..judges.learned import told_apart

if TYPE_CHECKING:
    from ..engines.base import Runner

EVERY = (*ELICIT, *SHORT)
TRIED = 10  # instructions for each wording
BELOW = 0.1  # the best, in AUROC, that a wording may be
LEAST, MOST = 2, 6  # wordings that are kept


def chosen(
    writer: Runner, concept: str, instructions: Sequence[Example], tokens: int, seed: int
) -> tuple[tuple[str, ...], dict[str, float]]:
    """The wordings that are kept, best first, and each one's AUROC against plain answers to instructions held out.

    All of `ELICIT`, and no figures, where the writer answers too little to tell.
    """
    step = max(1, len(instructions) // TRIED)
    prompts = [e.without_answer() for e in instructions[::step][:TRIED]]
    wanted = [prompts, *([asked(e, wording, concept) for e in prompts] for wording in EVERY)]
    try:
        replies = writer.generate([e for kind in wanted for e in kind], None, Sampling(tokens, seed=seed))
    except DataError:  # one of them was refused: the ordinary way counts what is
        return ELICIT, {}
    texts = [reply.text.strip() for reply in replies]
    n = len(prompts)
    plain, *kinds = (texts[k * n : (k + 1) * n] for k in range(len(wanted)))
    answered = [k for k in range(n) if plain[k]]
    kept = {w: kind for w, kind in zip(EVERY, kinds, strict=True) if all(kind[k] for k in answered)}
    if len(answered) < TRIED // 2 or len(kept) < LEAST:
        return ELICIT, {}
    found = told_apart(
        {w: [kind[k] for k in answered] for w, kind in kept.items()}, [plain[k] for k in answered], [str(k) for k in answered],
        seed=seed,
    )  # fmt: skip
    best = sorted(found, key=lambda w: -found[w])
    good = [w for w in best if found[w] >= found[best[0]] - BELOW]
    return tuple(good[:MOST] if len(good) >= LEAST else best[:LEAST]), found
