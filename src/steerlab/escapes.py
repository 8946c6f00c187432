"""Texts of files and models on a terminal: what would move its cursor, colour it or turn lines round is shown and not done."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import Console

UNSEEN = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls, tabs and line breaks left out
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn text round
    "\u2028\u2029\ufeff\U000e0000-\U000e007f"  # line breaks that nobody sees, and letters that nobody sees
    "\ud800-\udfff"  # halves of characters, which can't be printed
    "]"
)


def visible(text: str) -> str:
    """The text with such characters written as Python and JSON write them: `\\x1b`, `\\u202e`; line breaks and tabs stay."""
    return UNSEEN.sub(lambda found: _written(ord(found[0])), text)


def visible_json(thing: Any) -> str:
    """A thing as JSON in which such characters are escaped: it reads back as the same thing."""
    text = json.dumps(thing, indent=1, ensure_ascii=False, default=str)
    return UNSEEN.sub(
        lambda found: json.dumps(found[0])[1:-1] if found[0] > "\x9f" else f"\\u{ord(found[0]):04x}", text
    )


def console(*, err: bool = False) -> Console:
    """A terminal, or plain text where the output goes to a file or a pipe: no [markup], no :emoji:, and nothing unseen."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

    class Plain(Console):
        """Shows what texts hold; its own colours are not part of any text."""

        def render_str(self, text: str, **how: Any) -> Text:
            return super().render_str(visible(text), **how)

        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    return Plain(stderr=err, markup=False, emoji=False, highlight=False)


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
