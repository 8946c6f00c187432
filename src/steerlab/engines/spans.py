"""Spans of a reply in which it is left unsteered: thinking, tool calls, JSON.

What counts is the text so far, so a row's spans don't depend on who else is in its batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Span(NamedTuple):
    """From the token after the one that completes `begin` up to the one that completes `end`."""

    begin: str
    end: str


NAMED = {
    "thinking": Span("<think>", "</think>"),
    "tool_calls": Span("<tool_call>", "</tool_call>"),
    "json": Span("```json", "```"),
}


def inside(text: str, spans: Sequence[Span]) -> bool:
    """Whether the text ends inside of one of the spans; they don't nest, and the first to begin counts."""
    at = 0
    while True:
        found = [(start, span) for span in spans if (start := text.find(span.begin, at)) >= 0]
        if not found:
            return False
        start, span = min(found)
        stop = text.find(span.end, start + len(span.begin))
        if stop < 0:
            return True
        at = stop + len(span.end)
