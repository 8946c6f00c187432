"""Any Hugging Face sequence classifier as a judge: the probability that it gives to a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ..errors import ConfigError, nearest
from .base import Judge, Score
from .local import Loaded, harmless, loaded, room

if TYPE_CHECKING:
    from ..contrast import Example


@dataclass(frozen=True)
class ClassifierJudge(Judge):
    """The probability of `label` under a sequence classifier (a folder, or a name on the hub).

    Labels are the model's own; where it names none they are LABEL_0, LABEL_1, ... A model with one output, or one for texts of
    many labels, gives a sigmoid of its logit, all others a softmax. `with_prompt` shows it the prompt before the reply, as a
    pair. Replies longer than the model can read are cut, and say so.
    """

    model: str = ""
    label: str = ""
    revision: str | None = None
    device: str = "cpu"
    with_prompt: bool = False
    batch_size: int = 32
    threshold: float = 0.5
    tried: ClassVar[Mapping[str, Any]] = {"model": "{classifier}", "label": "LABEL_1"}

    def __post_init__(self) -> None:
        if not self.model or not self.label:
            raise ConfigError(
                "a classifier judge needs a model (a folder, or a name on the hub) and one of its labels (label=...)."
            )
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; expected at least 1.")

    def __call__(self, reply: str, example: Example) -> Score:
        """The label's probability; missing for an empty reply."""
        return self.scores([reply], [example])[0]

    def scores(self, replies: Sequence[str], examples: Sequence[Example]) -> list[Score]:
        """A score for each reply, in batches of like length."""
        found: list[Score] = [Score.missing("the reply is empty")] * len(replies)
        order = sorted((n for n, r in enumerate(replies) if r.strip()), key=lambda n: (-len(replies[n]), n))
        if not order:
            return found
        model = loaded(self.model, self.revision, self.device, "AutoModelForSequenceClassification")
        which = _label(model, self.label)
        for start in range(0, len(order), self.batch_size):
            part = order[start : start + self.batch_size]
            before = [examples[n].instruction for n in part] if self.with_prompt else None
            for n, score in zip(part, _judged(model, which, [replies[n] for n in part], before), strict=True):
                found[n] = score
        return found


def _label(of: Loaded, label: str) -> int:
    names = {str(name).lower(): int(n) for n, name in of.model.config.id2label.items()}
    if label.lower() not in names:
        raise ConfigError(
            f"the classifier has no label {label!r}. {nearest(label, map(str, of.model.config.id2label.values()))}"
        )
    return names[label.lower()]


def _judged(of: Loaded, which: int, texts: Sequence[str], before: Sequence[str] | None) -> list[Score]:
    import torch

    given = [[harmless(of, text) for text in side] for side in (before, texts) if side is not None]
    most = room(of)
    lengths = [len(ids) for ids in of.tokenizer(*given)["input_ids"]]
    inputs = of.tokenizer(*given, return_tensors="pt", padding=True, truncation=True, max_length=most).to(
        of.model.device
    )
    with torch.no_grad():
        logits = of.model(**inputs).logits.float()
    alone = logits.shape[1] == 1 or of.model.config.problem_type == "multi_label_classification"
    shares = torch.sigmoid(logits) if alone else torch.softmax(logits, dim=1)
    found: list[Score] = []
    for value, length in zip(shares[:, min(which, logits.shape[1] - 1)].tolist(), lengths, strict=True):
        if value != value:
            found.append(Score.missing("the classifier gives no number"))
        else:
            found.append(
                Score(min(1.0, max(0.0, value)), f"cut after {most} of {length} tokens" if length > most else "")
            )
    return found
