"""Lets the tests here import `clothed_person`, and `small_person` of the avatar's tests."""

import sys
from pathlib import Path

for folder in ("torso", "avatar", "head"):
    sys.path.insert(0, str(Path(__file__).parents[1] / folder))
