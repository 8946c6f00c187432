"""Rule concepts: things that an answer can do and a program can check (after RePS, arXiv 2505.20809, appendix).

Each is a concept like any other: data is written for it, methods are fitted to it, and whether it is there is told by its rule.
"""

from __future__ import annotations

from .writing import Named

_RULES = (
    ("an answer that is one JSON object", "form:json"), ("an answer that is a bullet list", "form:bullets"),
    ("an answer that is a numbered list", "form:numbered"), ("Markdown headings", "form:headings"),
    ("a Markdown table", "form:table"),
    ("a code block", "form:code"), ("all letters in lower case", "form:lower"), ("all letters in capitals", "form:upper"),
    ("every word begun with a capital", "form:title"), ("only sentences that are questions", "form:questions"),
    ("only sentences that end with an exclamation mark", "form:exclamations"), ("words in quotation marks", "form:quoted"),
    ("emoji", "form:emoji"), ("hashtags", "form:hashtags"), ("an e-mail address", "form:email"), ("a web address", "form:url"),
    ("a phone number", "form:phone"), ("a date", "form:date"), ("words in bold type, between double asterisks", "form:bold"),
    ("at most two sentences", "form:sentences<=2"), ("at most twenty words", "form:words<=20"),
    ("an answer that begins with the words 'As a matter of fact'", "form:starts=As a matter of fact"),
    ("an answer that ends with the words 'and that is all.'", "form:ends=and that is all."),
    ("the French language", "language:fr"), ("the German language", "language:de"),
)  # fmt: skip


def rule_concepts() -> tuple[Named, ...]:
    """The twenty-five of them."""
    return tuple(Named(words, "text", rule) for words, rule in _RULES)
