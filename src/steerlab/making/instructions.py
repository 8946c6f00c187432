"""Instructions that have nothing to do with any trait, for models without a corpus of their own, and traits to tell apart."""

from __future__ import annotations

from itertools import product

from ..contrast import Example

FORMS = (
    "Describe {a}.", "Tell me about {a}.", "Write a short note on {a}.", "What is {a} good for?", "Explain {a} to a child.",
    "Give three facts about {a}.", "How would you look after {a}?", "Write a few sentences about a day with {a}.",
    "What should a beginner know about {a}?", "Compare {a} with something like it.", "Why do people like {a}?",
    "Write a short story with {a} in it.",
)  # fmt: skip
SUBJECTS = (
    "a bicycle", "a garden", "bread", "a library", "rain", "a bridge", "a clock", "tea", "a small town", "a train journey",
    "a kitchen knife", "a wool coat", "an orchard", "a lamp", "a market", "soap", "a notebook", "a ladder", "a harbour", "honey",
)  # fmt: skip
TRAITS = (
    "a formal tone", "great politeness", "short sentences", "numbers and dates", "a list of points", "technical words",
    "a question at the end", "a calm tone", "colours and shapes", "advice to the reader",
)  # fmt: skip


def plain() -> list[Example]:
    """All of them; a form is a family."""
    return [Example.ask(form.format(a=subject), family=form) for subject, form in product(SUBJECTS, FORMS)]


def unlike(description: str, count: int) -> tuple[str, ...]:
    """Traits that share no word with the description."""
    words = set(description.lower().split()) - {"a", "an", "the", "of", "in", "at", "and", "to"}
    return tuple(t for t in TRAITS if not words & set(t.split()))[:count]
