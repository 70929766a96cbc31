"""Every tool starts as `python -m tools.NAME`."""

from __future__ import annotations

import subprocess
import sys

from tests.fixtures.commands import ROOT

START = """
import runpy, sys
for name in sys.argv[1:]:
    sys.argv = [name, "--help"]
    try:
        runpy.run_module(f"tools.{name}", run_name="__main__")
    except SystemExit as error:
        assert error.code == 0, name
"""


def test_tools_start() -> None:
    """In one process, since importing PyTorch takes most of the time."""
    tools = [path.parent.name for path in sorted(ROOT.glob("tools/*/__main__.py"))]
    command = [sys.executable, "-c", START, *tools]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage:") == len(tools) == 5
