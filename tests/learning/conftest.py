"""Lets the tests here import `small_person`, and it the head in FLAME's layout."""

import sys
from pathlib import Path

for folder in ("avatar", "head"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
