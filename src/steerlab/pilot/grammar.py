"""English word forms: plurals, verb forms, articles, capitals. Small, rule-based, and right for the lexicons here."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

Form = Literal["base", "s", "ed", "ing", "en"]

_PAST = {
    "arise": "arose", "be": "was", "bear": "bore", "beat": "beat", "become": "became", "begin": "began", "bind": "bound",
    "bend": "bent", "bite": "bit", "bleed": "bled", "blow": "blew", "break": "broke", "breed": "bred",
    "bring": "brought", "build": "built", "burst": "burst", "buy": "bought", "cast": "cast", "catch": "caught",
    "choose": "chose", "cling": "clung", "come": "came", "cost": "cost", "creep": "crept", "cut": "cut",
    "deal": "dealt", "dig": "dug", "do": "did", "draw": "drew", "drink": "drank", "drive": "drove", "eat": "ate",
    "fall": "fell", "feed": "fed", "feel": "felt", "fight": "fought", "find": "found", "fit": "fitted", "fly": "flew",
    "forget": "forgot", "forgive": "forgave", "freeze": "froze", "get": "got", "give": "gave", "go": "went",
    "grind": "ground", "grow": "grew", "hang": "hung", "have": "had", "hear": "heard", "hide": "hid", "hit": "hit",
    "hold": "held", "hurt": "hurt", "keep": "kept", "kneel": "knelt", "know": "knew", "lay": "laid", "lead": "led",
    "leave": "left", "lend": "lent", "let": "let", "lie": "lay", "light": "lit", "lose": "lost", "make": "made",
    "mean": "meant", "meet": "met", "outlive": "outlived", "pay": "paid", "put": "put", "read": "read",
    "ride": "rode", "ring": "rang", "rise": "rose", "rub": "rubbed", "run": "ran", "say": "said", "see": "saw",
    "seek": "sought", "sell": "sold", "send": "sent", "set": "set", "sew": "sewed", "shake": "shook",
    "shear": "sheared", "shine": "shone", "shoot": "shot", "show": "showed", "shrink": "shrank", "shut": "shut",
    "sing": "sang", "sink": "sank", "sit": "sat", "sleep": "slept", "slide": "slid", "sling": "slung", "sow": "sowed",
    "speak": "spoke", "spend": "spent", "spin": "spun", "split": "split", "spread": "spread", "spring": "sprang",
    "stand": "stood", "steal": "stole", "stick": "stuck", "sting": "stung", "strike": "struck", "string": "strung",
    "swear": "swore", "sweep": "swept", "swim": "swam", "swing": "swung", "take": "took", "teach": "taught",
    "tear": "tore", "tell": "told", "think": "thought", "throw": "threw", "thrust": "thrust", "tread": "trod",
    "understand": "understood", "wake": "woke", "wear": "wore", "weave": "wove", "weep": "wept", "win": "won",
    "shed": "shed", "spit": "spat", "restring": "restrung",
    "wind": "wound", "withstand": "withstood", "write": "wrote", "repay": "repaid", "undo": "undid", "re-read": "re-read",
    "overhear": "overheard", "forbid": "forbade", "outshine": "outshone", "string up": "strung up",
}  # fmt: skip
# past participles where they differ from the past
_PARTICIPLE = {
    "arise": "arisen", "be": "been", "bear": "borne", "beat": "beaten", "become": "become", "begin": "begun",
    "bite": "bitten", "blow": "blown", "break": "broken", "choose": "chosen", "come": "come", "do": "done",
    "draw": "drawn", "drink": "drunk", "drive": "driven", "eat": "eaten", "fall": "fallen", "fly": "flown",
    "forget": "forgotten", "forgive": "forgiven", "freeze": "frozen", "give": "given", "go": "gone", "grow": "grown",
    "hide": "hidden", "know": "known", "lie": "lain", "ride": "ridden", "ring": "rung", "rise": "risen", "run": "run",
    "see": "seen", "sew": "sewn", "shake": "shaken", "shear": "shorn", "show": "shown", "shrink": "shrunk",
    "sing": "sung", "sink": "sunk", "sow": "sown", "speak": "spoken", "spring": "sprung", "steal": "stolen",
    "swear": "sworn", "swim": "swum", "take": "taken", "tear": "torn", "throw": "thrown", "tread": "trodden",
    "wake": "woken", "wear": "worn", "weave": "woven", "write": "written", "undo": "undone",
}  # fmt: skip
_DOUBLING_LINES = (
    "bat beg blot bob brag chat chip chop clap clip clog cut dab dig dim dip drag drip drop drum flap flip flit fit",
    "get grab grin grip hem hit hop hug hum jam jog knit knot lap let log mop nap nod nip pad pat pin pit plan plod",
    "plop plot plug pop prop put quiz rap rip rob rot rub run rig sag set ship shop shred shrug shut sip sit skid",
    "skim skip slam slap slip slot snap snip sob span spin spit split spot stab star stem step stir stop strap strip",
    "strum strut stun swap swim swig tag tan tap thin throb tip top trap trim trot tug wag wed wet whip win wrap zip",
    "crop thud stub sun skin bar mat gut unwrap unplug unzip outrun grub upset shed rid begin forget permit commit",
    "regret refer admit stag bid quit fog map repot scrub label dial travel unravel shovel scan",
)
_DOUBLING = frozenset(word for line in _DOUBLING_LINES for word in line.split())
_PLURALS = {
    "child": "children", "man": "men", "woman": "women", "foot": "feet", "tooth": "teeth", "goose": "geese",
    "mouse": "mice", "ox": "oxen", "person": "people", "sheep": "sheep", "deer": "deer", "fish": "fish",
    "leaf": "leaves", "loaf": "loaves", "knife": "knives", "wolf": "wolves", "shelf": "shelves", "half": "halves",
    "thief": "thieves", "calf": "calves", "wife": "wives", "scarf": "scarves", "hoof": "hooves", "life": "lives",
    "echo": "echoes", "hero": "heroes", "potato": "potatoes", "tomato": "tomatoes", "volcano": "volcanoes",
    "handiwork": "handiwork", "postman": "postmen", "passer-by": "passers-by", "best man": "best men",
    "scissors": "scissors", "shears": "shears", "gas": "gases", "hired hand": "hired hands", "die": "dice",
    "salmon": "salmon", "trout": "trout", "swine": "swine", "spectacles": "spectacles", "trousers": "trousers",
    "elf": "elves", "bookshelf": "bookshelves", "cloverleaf": "cloverleaves", "louse": "lice", "wharf": "wharves",
    "crisis": "crises", "cactus": "cactuses", "buffalo": "buffaloes", "tongs": "tongs", "domino": "dominoes",
}  # fmt: skip
_MASS_LINES = (
    "hay mud silt spray smoke soot chalk wool ash lava clay ink paper wax leather glue varnish glaze yarn moss straw",
    "grass ivy fur dust pollen soil sand foam flour manure laughter rice sugar salt honey milk bread tea coffee rain",
    "mist fog snow timber rubble plaster mortar tar oil patience silence shade thatch lead fleece rosin cloth",
    "applause lace felt velvet silk linen cotton sawdust firewood luggage slate gravel clover resin stuffing water",
)
MASS = frozenset(word for line in _MASS_LINES for word in line.split())
_VOWEL = "aeiou"
# words that begin with a vowel letter but a consonant sound, and the reverse
_CONSONANT_SOUND = re.compile(r"(?:uni|use|usu|util|eu|one\b|once\b|ukulele|u-)", re.IGNORECASE)
_VOWEL_SOUND = re.compile(r"(?:hour|honest|honou?r|heir)", re.IGNORECASE)
_ARTICLE = re.compile(r"\b([Aa])n? (?=([A-Za-z][\w'-]*))")


@lru_cache(maxsize=8192)
def plural(noun: str) -> str:
    """The plural of a noun phrase; the head is its last word, or the one before 'of'."""
    if " of " in noun:
        head, rest = noun.split(" of ", 1)
        return f"{plural(head)} of {rest}"
    if noun in _PLURALS:
        return _PLURALS[noun]
    first, _, last = noun.rpartition(" ")
    if first:
        return f"{first} {plural(last)}"
    for tail in ("man", "child", "mouse", "leaf", "foot", "tooth", "wife"):
        if noun.endswith(tail) and len(noun) > len(tail) and noun not in ("human", "german", "roman"):
            return noun[: -len(tail)] + _PLURALS.get(tail, "men")
    if noun.endswith("y") and noun[-2:-1] not in _VOWEL:
        return noun[:-1] + "ies"
    if noun.endswith(("s", "x", "z", "ch", "sh")):
        return noun + "es"
    return noun + "s"


@lru_cache(maxsize=8192)
def verb(phrase: str, form: Form) -> str:
    """A verb phrase in another form; only its first word changes (`climb the stairs` -> `climbed the stairs`)."""
    word, _, rest = phrase.partition(" ")
    changed = _verb(word, form)
    if "+" in rest:  # a second verb, marked in the lexicon: "nod and +bow"
        rest = re.sub(r"\band \+(\w+)", lambda m: "and " + _verb(m.group(1), form), rest)
    return f"{changed} {rest}" if rest else changed


def _verb(word: str, form: Form) -> str:
    if form == "base":
        return word
    if "-" in word:
        first, last = word.rsplit("-", 1)
        return f"{first}-{_verb(last, form)}"
    if form == "s":
        if word in ("be", "have", "do", "go"):
            return {"be": "is", "have": "has", "do": "does", "go": "goes"}[word]
        if word.endswith("y") and word[-2:-1] not in _VOWEL:
            return word[:-1] + "ies"
        return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh", "o")) and not word.endswith("oo") else "s")
    if form == "en" and word in _PARTICIPLE:
        return _PARTICIPLE[word]
    if form in ("ed", "en"):
        if word in _PAST:
            return _PAST[word]
        if word.endswith("e"):
            return word + "d"
        if word.endswith("y") and word[-2:-1] not in _VOWEL:
            return word[:-1] + "ied"
        return (word + word[-1] if word in _DOUBLING else word) + "ed"
    if word == "lie" or word == "tie" or word == "die":
        return word[:-2] + "ying"
    if word in ("dye", "singe", "eye"):
        return word + "ing"
    if word.endswith("e") and not word.endswith(("ee", "oe", "ye")) and word != "be":
        return word[:-1] + "ing"
    return (word + word[-1] if word in _DOUBLING else word) + "ing"


def article(noun: str) -> str:
    """The noun phrase with a or an."""
    return fix_articles(f"a {noun}")


def fix_articles(text: str) -> str:
    """Every a/an agrees with the sound of the word after it."""
    return _ARTICLE.sub(_right_article, text)


def _right_article(found: re.Match[str]) -> str:
    a, word = found.group(1), found.group(2)
    if len(word) == 1:  # a single letter ("a B") is not a word here
        return found.group(0)
    vowel = (word[0].lower() in _VOWEL and not _CONSONANT_SOUND.match(word)) or bool(_VOWEL_SOUND.match(word))
    return f"{a}n " if vowel else f"{a} "


def capitalise(text: str) -> str:
    """The first letter as a capital, leading quotes and brackets skipped."""
    for i, c in enumerate(text):
        if c.isalpha():
            return text[:i] + c.upper() + text[i + 1 :]
        if c.isdigit():
            return text
    return text


def join_and(items: list[str], word: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    if len(items) < 2:
        return "".join(items)
    return ", ".join(items[:-1]) + f" {word} {items[-1]}"
