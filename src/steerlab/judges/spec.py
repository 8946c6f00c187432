"""A judge from a line of text, for the command line and YAML: `words:sad,gloomy`, `words:@file`, `regex:...`."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import ConfigError, nearest
from .base import Judge
from .rule import CapitalsJudge, LexiconJudge, PatternJudge

FORMS = {
    "words": "words:sad,gloomy,tears or words:@FILE (one a line)",
    "regex": "regex:PATTERN",
    "capitals": "capitals",
}


def parse_rule(text: str) -> Judge:
    """The judge that a rule names. Raises `ConfigError` with the forms there are.

    `words:` counts different words of a list, spread over the sentences; `regex:` the share of sentences that match;
    `capitals` the share of letters that are capital.
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
    raise ConfigError(f"a rule is {text!r}. {nearest(kind, FORMS)} Forms: {'; '.join(FORMS.values())}.")


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
