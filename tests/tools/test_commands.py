"""Every tool starts as `python -m tools.NAME`."""

from __future__ import annotations

from tests.fixtures.commands import ROOT, run_python

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
    done = run_python("-c", START, *tools, cwd=ROOT, minutes=2)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("usage:") == len(tools) == 5
