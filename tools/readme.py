"""Runs every command and Python example of the README as it stands there, in an empty folder; exits with 1 at the first
that fails. Blocks after a comment `<!-- setup -->`, `<!-- long -->` or `<!-- network -->` are left out, and said so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"(?:<!-- (?P<mark>\w+)[^>]*-->\n)?```(?P<kind>bash|python)\n(?P<text>.*?)```", re.DOTALL)


def main() -> int:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "COLUMNS": "120"}
    with tempfile.TemporaryDirectory() as folder:
        for block in BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8")):
            kind, text, mark = block["kind"], block["text"], block["mark"]
            title = text.strip().splitlines()[0]
            if mark in ("setup", "long", "network"):
                print(f"left out ({mark}): {title}", flush=True)
                continue
            command = ["bash", "-euo", "pipefail", "-c", text] if kind == "bash" else [sys.executable, "-c", text]
            started = time.perf_counter()
            found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
            print(
                f"{'ok' if found.returncode == 0 else 'FAILED':7}{time.perf_counter() - started:6.1f} s  {title}",
                flush=True,
            )
            if found.returncode:
                print(found.stdout + found.stderr)
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
