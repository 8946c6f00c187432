"""A judge from a line of text, for the command line and YAML: `words:sad,gloomy`, `form:json`, `llm,model=...,concept=...`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from .. import plugins
from ..errors import ConfigError, nearest
from .base import Judge, judge
from .rule import CapitalsJudge, LexiconJudge, PatternJudge

FORMS = {
    "words": "words:sad,gloomy,tears or words:@FILE (one a line)",
    "regex": "regex:PATTERN",
    "capitals": "capitals",
    "language": "language:de",
    "form": "form:json, form:sentences<=3, ...",
    "sentiment": "sentiment:positive or sentiment:negative,@FILE",
}


def parse_rule(text: str) -> Judge:
    """The judge that a rule names. Raises `ConfigError` with the forms there are.

    `words:` counts different words of a list, spread over the sentences; `regex:` the share of sentences that match;
    `capitals` the share of letters that are capital; `language:` the share of words in sentences of a language; `form:` how far a
    form is kept; `sentiment:` how positive or negative it is. Any judge by its name, or by its file, takes its settings after
    commas: `classifier,model=FOLDER,label=formal`, `./mine.py,least=3`.
    """
    kind, _, rest = text.partition(":")
    if kind == "words" and rest:
        return LexiconJudge(_words(rest))
    if kind == "regex" and rest:
        try:
            re.compile(rest)
        except re.error as problem:
            raise ConfigError(f"the rule {text!r} is no valid regular expression: {problem}.") from problem
        return PatternJudge(rest)
    if kind == "capitals" and not rest:
        return CapitalsJudge()
    if kind in ("language", "form") and rest:
        return judge(kind, {kind: rest})
    if kind == "sentiment" and rest:
        pole, _, file = rest.partition(",@")
        return judge("sentiment", {"pole": pole, "lexicon": file})
    name = text.split(",", 1)[0]
    if name.endswith(".py") or name.replace("-", "_") in plugins.names("judges"):
        return judge(name, settings_of(text))
    near = nearest(kind, [*FORMS, *plugins.names("judges")])
    near = nearest(kind, [*FORMS, *plugins.names("judges")])
    raise ConfigError(f"a rule is {text!r}. {near} Forms: {'; '.join(FORMS.values())}; or JUDGE,key=value.")


def settings_of(text: str) -> dict[str, Any]:
    """The settings of `NAME,key=value,key=value`; a comma inside a value is doubled. Raises `ConfigError`."""
    import yaml

    pieces = [p.replace("\0", ",") for p in text.replace(",,", "\0").split(",")][1:]
    found: dict[str, Any] = {}
    for piece in pieces:
        key, equals, value = piece.partition("=")
        if not equals:
            raise ConfigError(
                f"the judge {text!r} has the piece {piece!r}; it is written NAME,key=value,... (a comma in a value: ,,)."
            )
        try:
            found[key.strip()] = yaml.safe_load(value) if value else ""
        except yaml.YAMLError:
            found[key.strip()] = value
    return found


def _words(given: str) -> tuple[str, ...]:
    if not given.startswith("@"):
        words = given.split(",")
    else:
        path = Path(given[1:])
        try:
            words = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as problem:
            raise ConfigError(f"the word list {path} can't be read as UTF-8 text: {problem}.") from problem
    found = tuple(dict.fromkeys(w.strip() for w in words if w.strip() and not w.startswith("#")))
    if not found:
        raise ConfigError(f"the rule words:{given} has no word in it; expected at least one.")
    return found
