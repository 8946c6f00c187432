"""Where the suite's processor time goes: `pytest -p slowest` (with tests/ on the path), which is `make slowest`.

Counts the processor's seconds of a test and of the processes that it waited for; fixtures count for the test that made them.
Seconds of the clock would be those of whatever else the machine did.
"""

from __future__ import annotations

import os
import resource
from collections import Counter
from multiprocessing.forkserver import _forkserver
from pathlib import Path

import pytest

SHOWN = 30


def _used() -> float:
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime + _forked()


def _forked() -> float:
    """Seconds of the process that others are forked from, and of those that have ended: nobody else waits for them."""
    if (pid := _forkserver._forkserver_pid) is None or not (told := Path(f"/proc/{pid}/stat")).exists():
        return 0.0
    return sum(int(n) for n in told.read_text().rpartition(")")[2].split()[11:15]) / os.sysconf("SC_CLK_TCK")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    item.stash[_BEGAN] = _used()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when == "teardown":
        report.user_properties = [*report.user_properties, ("processor", _used() - item.stash[_BEGAN])]
    return report


def pytest_terminal_summary(terminalreporter):
    spent = {
        report.nodeid: dict(report.user_properties)["processor"]
        for reports in terminalreporter.stats.values()
        for report in reports
        if "processor" in dict(getattr(report, "user_properties", ()))
    }
    files: Counter[str] = Counter()
    for name, seconds in spent.items():
        files[name.partition("::")[0]] += seconds
    terminalreporter.section(f"{sum(spent.values()) / 60:.1f} processor minutes for {len(spent)} tests")
    for title, counted in (("tests", Counter(spent)), ("files", files)):
        terminalreporter.write_line(f"the slowest {title}, in seconds of a processor")
        for name, seconds in counted.most_common(SHOWN):
            terminalreporter.write_line(f"{seconds:8.1f}  {name}")


_BEGAN = pytest.StashKey[float]()
