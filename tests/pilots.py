"""What the tests of the pilot share: both variants, and how often a judge says yes."""

from __future__ import annotations

import pytest

VARIANTS = ("pilot", "second")
both = pytest.mark.parametrize("variant", VARIANTS)


def share(judge, examples):
    verdicts = [judge.present(judge(e.answer or "", e)) for e in examples]
    return sum(v is True for v in verdicts) / len(verdicts)
