"""Lets the tests here import the tools, and a small person to measure."""

import sys
from pathlib import Path

for folder in ("tools", "tests/avatar", "tests/head"):
    sys.path.insert(0, str(Path(__file__).parents[2] / folder))
