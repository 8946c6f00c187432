"""Tests run on one thread per worker, offline, and never in the caller's own folders.

`STEERLAB_KERNELS` runs them under other kernels of this processor (`make test-kernels`): `plain` without oneDNN, `threads` on two
threads.
"""

from __future__ import annotations

import atexit
import io
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# with it every process that tests start compiles the library anew: seconds each
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
if "STEERLAB_PLANTED" not in os.environ:  # taught once, for all processes of this run
    _planted = tempfile.mkdtemp(prefix="steerlab-planted-")
    os.environ["STEERLAB_PLANTED"] = f"{_planted}/planted.safetensors"
    atexit.register(shutil.rmtree, _planted, ignore_errors=True)

import hypothesis
import pytest
import torch

import steerlab as sl
from steerlab import cli
from steerlab.testing import tiny

pytest.register_assert_rewrite("judging", "serving")  # what they assert is told as in a test
torch.set_num_threads(2 if os.environ.get("STEERLAB_KERNELS") == "threads" else 1)
torch.backends.mkldnn.set_flags(os.environ.get("STEERLAB_KERNELS") != "plain")
hypothesis.settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("untimed")


def shared_folder() -> Path:
    """Real data and models that tests may read: the folder `shared` beside the checkout, or STEERLAB_SHARED."""
    return Path(os.environ.get("STEERLAB_SHARED", Path(__file__).resolve().parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared data; the test is skipped where there is none."""
    if not shared_folder().is_dir():
        pytest.skip(f"no shared data at {shared_folder()} (set STEERLAB_SHARED)")
    return shared_folder()


@pytest.fixture(scope="module")
def engine():
    """A tiny model."""
    return tiny.engine("llama")


@pytest.fixture
def steering():
    """A shift that the tiny model takes."""
    return sl.Steering((sl.Intervention(sl.Site(1), sl.Shift(torch.ones(32))),))


@pytest.fixture(scope="module")
def steerings(engine):
    """Several for one server, by name."""
    from serving import several  # the server's libraries are an extra

    return several(engine)


@pytest.fixture(scope="module")
def server(engine, steerings, tmp_path_factory):
    """A server in this process that has them."""
    from serving import holding

    with holding(engine, tmp_path_factory.mktemp("store"), steerings) as here:
        yield here


@pytest.fixture
def steerlab(capsys, monkeypatch):
    """Run a command line in this process; gives (exit code, output, errors)."""
    monkeypatch.setenv("COLUMNS", "160")

    def run(*words: str, typed: str = ""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        printed = capsys.readouterr()
        return end.value.code or 0, printed.out, printed.err

    return run
