"""`verify`: does a steering do, on an engine or in an export, what its definition says? A receipt of checks, one for each.

Every figure is a difference of log-probabilities from one reference (`_plain`): one row at a time, no padding, no cache, hooks
of its own. Engines are files here, found by discovery; `base.Target` says what one is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .. import plugins, progress
from ..errors import SteerlabError, UnsupportedError

if TYPE_CHECKING:
    from ..contrast import Example
    from ..engines.hf import HFEngine
    from ..steering import Steering
    from .base import Options, Receipt

PROMPTS = (
    "Describe a kitchen.",
    "What would you tell somebody who asks why the tides rise and fall twice a day?",
    "Name three fruits.",
    "Say in a few words what a lamp is for.",
)
ANSWER = "Well, here is what I can say about it."


def verify(
    engine: HFEngine,
    steering: Steering,
    on: Sequence[str] = ("hf",),
    *,
    prompts: Sequence[Example] | None = None,
    options: Options | None = None,
) -> list[Receipt]:
    """A receipt for each engine named. A steering that an engine or export refuses gets a receipt with the reasons.

    `prompts` are what it is tried on (four sentences of unlike lengths otherwise; at least two are needed); their answers are
    scored, or a fixed sentence where they have none.
    """
    from .base import Options, Receipt, probes_of

    options = options or Options()
    receipts: list[Receipt] = []
    targets = {name: plugins.load(name, "verify")() for name in on}  # raises for an unknown name before anything runs
    with progress.task("verifying", len(on)) as bar:
        probes = probes_of(engine, prompts, PROMPTS, ANSWER)
        for name, target in targets.items():
            try:
                receipts.append(Receipt(name, tuple(target.check(engine, steering, probes, options))))
            except UnsupportedError as problem:
                receipts.append(Receipt(name, (), refused=str(problem)))
            except SteerlabError as problem:
                receipts.append(Receipt(name, (), broke=str(problem)))
            bar.advance(1)
    return receipts
