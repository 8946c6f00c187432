"""HTML and SVG by construction: whatever is not `Markup` is text, and text is escaped.

Steered models write arbitrary text, prompts and names come from users: none of it may become a tag or close a script.
Every fragment of a chart or report is made by `tag`, so that forgetting to escape isn't possible.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

Value = str | int | float | bool | None

_SVG_EMPTY = frozenset({"path", "line", "circle", "rect", "polygon", "polyline"})
_HTML_EMPTY = frozenset({"meta", "br", "hr", "link", "input", "col"})
_ODD = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")  # neither HTML nor XML may hold them


@dataclass(frozen=True, slots=True)
class Markup:
    """A fragment that is markup already."""

    text: str

    def __str__(self) -> str:
        return self.text


def escaped(text: object) -> str:
    """Text that a browser and an XML parser show as it is: markup escaped, control characters and lone surrogates visible."""
    shown = _ODD.sub(_visible, str(text).replace("\r\n", "\n"))
    return html.escape(shown, quote=True)


def _visible(found: re.Match[str]) -> str:
    """A picture of a control character of ASCII; the replacement character for the rest."""
    code = ord(found[0])
    return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"


def number(value: float) -> str:
    """A coordinate in at most one decimal; enough at these sizes, and a third of the bytes."""
    text = f"{value:.1f}"
    text = text.removesuffix(".0")
    return "0" if text == "-0" else text


def tag(name: str, attributes: Mapping[str, Value] | None = None, *children: Markup | str) -> Markup:
    """An element. Attributes that are None or False are left out, True stands bare; floats are coordinates."""
    written = "".join(_attribute(key, value) for key, value in (attributes or {}).items())
    if name in _HTML_EMPTY:
        return Markup(f"<{name}{written}>")
    inner = joined(children).text
    if name in _SVG_EMPTY and not inner:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{inner}</{name}>")


def _attribute(key: str, value: Value) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return f" {key}"
    return f' {key}="{number(value) if isinstance(value, float) else escaped(value)}"'


def joined(parts: Iterable[Markup | str]) -> Markup:
    """One after another."""
    return Markup("".join(part.text if isinstance(part, Markup) else escaped(part) for part in parts))
