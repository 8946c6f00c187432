"""A small template language for writing many sentences from few lines.

``[a|b|c]`` picks one, ``<name>`` picks from a macro, ``{slot}`` asks the scene for a word. They nest. A template is
compiled once and expanded with a random generator, so thousands of texts a second are possible.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ..errors import ConfigError, nearest

Slot = Callable[[str], str]
Macros = Mapping[str, tuple["Template", ...]]

_TOKEN = re.compile(r"\[|\]|\||\{[^{}]*\}|<[a-z_]+>")


@dataclass(frozen=True, slots=True)
class Template:
    """A compiled template: a sequence of literal text, slots, macros and choices."""

    source: str
    parts: tuple[str | tuple[str, str] | tuple[Template, ...], ...]

    def expand(self, rng: random.Random, slot: Slot, macros: Macros) -> str:
        """One text, with spaces tidied."""
        out: list[str] = []
        self._into(out, rng, slot, macros)
        return tidy("".join(out))

    def _into(self, out: list[str], rng: random.Random, slot: Slot, macros: Macros) -> None:
        for part in self.parts:
            if isinstance(part, str):
                out.append(part)
            elif isinstance(part[0], Template):
                rng.choice(part)._into(out, rng, slot, macros)  # type: ignore[union-attr]
            elif part[0] == "slot":
                out.append(slot(part[1]))  # type: ignore[arg-type]
            else:
                rng.choice(macros[part[1]])._into(out, rng, slot, macros)  # type: ignore[index]

    def words(self) -> set[str]:
        """All words that the literal parts can produce."""
        found: set[str] = set()
        for part in self.parts:
            if isinstance(part, str):
                found.update(re.findall(r"[^\W\d_][\w'-]*", part.lower()))
            elif isinstance(part[0], Template):
                for choice in part:
                    found |= choice.words()  # type: ignore[union-attr]
        return found


def compile_template(source: str, macros: frozenset[str] | None = None) -> Template:
    """The template of a source text. Raises `ConfigError` for an unbalanced bracket or an unknown macro."""
    template, rest = _parse(source, source, depth=0, macros=macros)
    if rest:
        raise ConfigError(f"the template {source!r} has an unbalanced bracket near {rest!r}.")
    return template


def _parse(text: str, source: str, depth: int, macros: frozenset[str] | None) -> tuple[Template, str]:
    parts: list[str | tuple[str, str] | tuple[Template, ...]] = []
    while text:
        found = _TOKEN.search(text)
        if found is None:
            parts.append(text)
            text = ""
            break
        if found.start():
            parts.append(text[: found.start()])
        token, text = found.group(0), text[found.end() :]
        if token == "[":
            choices: list[Template] = []
            while True:
                choice, text = _parse(text, source, depth + 1, macros)
                choices.append(choice)
                if not text:
                    raise ConfigError(f"the template {source!r} has an open bracket.")
                closed, text = text[0] == "]", text[1:]
                if closed:
                    break
            parts.append(tuple(choices))
        elif token in "]|":
            if depth == 0:
                raise ConfigError(f"the template {source!r} has a stray {token!r}.")
            return Template(source, tuple(parts)), token + text
        elif token[0] == "{":
            parts.append(("slot", token[1:-1]))
        else:
            name = token[1:-1]
            if macros is not None and name not in macros:
                raise ConfigError(f"the template {source!r} uses the macro <{name}>. {nearest(name, macros)}")
            parts.append(("macro", name))
    return Template(source, tuple(parts)), text


_SPACES = re.compile(r"  +")
_BEFORE_MARK = re.compile(r" +([,.;:!?])")


def tidy(text: str) -> str:
    """Single spaces, none before a mark, none at the ends."""
    return _BEFORE_MARK.sub(r"\1", _SPACES.sub(" ", text)).strip()
