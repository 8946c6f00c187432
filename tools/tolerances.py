"""Lists what the tests and laws let two numbers differ by, and why that is enough: docs/tolerances.md.

usage: python tools/tolerances.py [--check]      --check says what is unlisted or out of date, and ends with 1

A tolerance is a name of `steerlab.testing.precision`, which says why, or a number with the reason in a comment beside it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tolerances.md"
PRECISION = ROOT / "src" / "steerlab" / "testing" / "precision.py"
NAMES = ("EXACT", "SUMMED", "FEW", "ONE", "MANY")
CALLS = ("approx", "assert_close", "allclose", "isclose")
WORDS = ("rtol", "atol", "rel", "abs", "rel_tol", "abs_tol")
LEAST = 0.01  # a bound from above that is smaller is a tolerance


class Tolerance(NamedTuple):
    """One comparison: where it stands, what it allows, and why."""

    path: str
    line: int
    test: str
    values: tuple[str, ...]
    why: str

    @property
    def allows(self) -> str:
        """What it allows, in words."""
        return ", ".join(self.values)

    @property
    def named(self) -> bool:
        """Whether a name says why."""
        return all(_names(value) for value in self.values)


def files() -> list[Path]:
    """Every file of tests and laws."""
    return sorted([*(ROOT / "tests").glob("*.py"), *(ROOT / "src" / "steerlab" / "testing").glob("*.py")])


def tolerances(path: Path) -> Iterator[Tolerance]:
    """All that one file allows."""
    text = path.read_text(encoding="utf-8")
    lines, tree = text.splitlines(), ast.parse(text)
    tests = [(n.lineno, n.end_lineno or n.lineno, n.name) for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    for node in ast.walk(tree):
        if not (values := tuple(_allowed(node))):
            continue
        first, last = node.lineno, node.end_lineno or node.lineno  # pyright: ignore[reportAttributeAccessIssue]
        inside = [name for a, b, name in tests if a <= first <= b]
        comments = [lines[n].partition("  # ")[2] for n in range(first - 1, last)]
        above = lines[first - 2].strip() if first > 1 else ""
        why = " ".join(c for c in comments if c and not c.startswith(("type:", "noqa"))) or (
            above.removeprefix("# ") if above.startswith("# ") else ""
        )
        yield Tolerance(path.relative_to(ROOT).as_posix(), first, inside[-1] if inside else "", values, why.strip())


def _allowed(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in CALLS:
        for word in node.keywords:
            if word.arg in WORDS and ast.unparse(word.value) not in ("0", "0.0"):
                yield f"{word.arg} {ast.unparse(word.value)}"
    if isinstance(node, ast.Compare):
        for operator, bound in zip(node.ops, node.comparators, strict=True):
            if not isinstance(operator, ast.Lt | ast.LtE):
                continue
            if (
                isinstance(bound, ast.Constant) and isinstance(bound.value, float) and 0 < bound.value <= LEAST
            ) or _names(ast.unparse(bound)):
                yield f"< {ast.unparse(bound)}"


def _names(value: str) -> bool:
    return bool(set(re.findall(r"\w+", value)) & set(NAMES))


def page() -> str:
    """The whole page."""
    every = [t for path in files() if path != PRECISION for t in tolerances(path)]
    source = PRECISION.read_text(encoding="utf-8")
    rows = [
        f"| `{name}` | {value} | {why} | {sum(name in ' '.join(t.values) for t in every)} |"
        for name, value, why in re.findall(r"^([A-Z]+) = (\S+)  # (.*)$", source, re.M)
        if name in NAMES
    ]
    own = [
        f"| {t.path.rpartition('/')[2]} | {t.test} | {', '.join(t.values)} | {t.why} |" for t in every if not t.named
    ]
    return "\n".join([
        "# Tolerances",
        "",
        "What the tests and laws let two numbers differ by, and why that is enough. Written by `python tools/tolerances.py`;",
        "a test holds that none is missing.",
        "",
        "A law that compares two orders of summation runs the library's own code in float64 and demands `EXACT`, since how far",
        "float32 is off depends on the processor's kernels. Where float32 itself is what users get, the allowance is what it may",
        "round by: terms · eps · magnitude (`steerlab.testing.precision.rounding`). `pytest -p margins` (with tests/ on the",
        "path) tells how near each comparison comes to what it may be off by, and `make test-kernels` runs all of them under",
        "every set of kernels that a processor has.",
        "",
        "A bare `pytest.approx` allows 1e-6 of the value: numbers of Python, computed twice. A bare `assert_close` allows",
        "1.3e-6 of the value and 1e-5, PyTorch's own for float32, and far less for float64.",
        "",
        "## By name",
        "",
        "| name | value | what it is for, and why it is enough | comparisons |",
        "|---|---|---|---|",
        *rows,
        "",
        "## With a reason of their own",
        "",
        "| file | test | allows | why it is enough |",
        "|---|---|---|---|",
        *own,
        "",
    ])  # fmt: skip


def main(words: list[str]) -> int:
    """Write the page, or check it."""
    unsaid = [t for path in files() if path != PRECISION for t in tolerances(path) if not t.named and not t.why]
    for t in unsaid:
        print(
            f"{t.path}:{t.line} allows {', '.join(t.values)} and doesn't say why it is enough: name it, or say so in a comment"
        )
    if "--check" not in words:
        PAGE.write_text(page(), encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.relative_to(ROOT)} is out of date: run python tools/tolerances.py")
        return 1
    return int(bool(unsaid))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
