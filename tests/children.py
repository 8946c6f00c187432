"""Processes of their own that don't load PyTorch anew: each is forked from one that has it, and none of steerlab.

A child has its own arguments, folder, environment and search path, imports steerlab from there, and is killed as any process is.
What is to be started exactly as a person starts it (the README's commands, those of docs/serving.md) is: by `subprocess`.
"""

from __future__ import annotations

import atexit
import functools
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import get_context
from pathlib import Path


@functools.cache
def _own() -> tuple[str, ...]:
    """Python's own search path: what is installed, and nothing of whoever runs the tests."""
    bare = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    told = "import sys; print(*sys.path, sep='\\n')"
    return tuple(
        subprocess.run([sys.executable, "-P", "-c", told], env=bare, capture_output=True, text=True).stdout.split()
    )


def _be(
    words: Sequence[str], folder: str, environment: Mapping[str, str], files: tuple[str, str], installed: Sequence[str]
) -> None:
    """What `python WORDS` does, in a process that is new but for what it has loaded."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    for number, path in zip((1, 2), files, strict=True):
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    sys.stdin = open(os.devnull)  # noqa: SIM115
    words = list(words)
    own = [] if words[0] == "-P" else [folder if "-m" in words else ""]
    if words[0] == "-P":
        words.pop(0)
    asked = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = [*own, *asked, *installed]
    assert not any(name.partition(".")[0] == "steerlab" for name in sys.modules), (
        "steerlab is loaded before it is asked for"
    )
    code = 0
    try:
        if words[0] == "-m":
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        elif words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:  # noqa: BLE001  (as Python itself ends)
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Child:
    """A process that runs; the part of `subprocess.Popen` that tests use."""

    def __init__(
        self, words: Sequence[str], folder: Path, environment: Mapping[str, str], out: Path, err: Path
    ) -> None:
        from steerlab.evals.workers import PRELOADED  # here alone: a child begins without steerlab

        context = get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        given = (tuple(words), str(folder), dict(environment), (str(out), str(err)), _own())
        self._process = context.Process(target=_be, args=given, daemon=False)
        self._process.start()
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("a child", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    words: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdout: Path | None = None,
    stderr: Path | None = None,
) -> Child:
    """Start `python WORDS`; what it prints goes to files, or nowhere."""
    nowhere = Path(os.devnull)
    return Child(words, cwd or Path.cwd(), env or os.environ, stdout or nowhere, stderr or nowhere)


def run(
    words: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float = 900
) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS` to its end."""
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        child = start(words, cwd=cwd, env=env, stdout=out, stderr=err)
        try:
            code = child.wait(timeout)
        finally:
            child.kill()
        return subprocess.CompletedProcess(list(words), code, out.read_text(), err.read_text())
