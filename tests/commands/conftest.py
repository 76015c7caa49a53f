"""Lets the tests here import `small_person`, it the head in FLAME's layout, and a new process `broken_probes`."""

import sys
from pathlib import Path

for folder in ("avatar", "head", "commands"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
