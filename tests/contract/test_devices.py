"""All that uses the network runs on another device than the CPU (``on_another_device``)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def test_all_that_uses_the_network_runs_on_another_device():
    # In a process of its own: PyTorch counts its devices once, when the first derivative is taken.
    tests = Path(__file__).with_name("on_another_device.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tests.parents[2])
    assert found.returncode == 0, found.stdout + found.stderr
