"""File of figures that `telepresence fit` writes beside an avatar, and that `telepresence evaluate` reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Final

from insta_runtime.avatar import avatar_file

MAX_FILE_CHARS: Final = 1 << 24
"""Maximum number of characters that are read from a file of figures."""


def figures_file(avatar: Path) -> Path:
    """Path of the figures of `telepresence fit`: ``fit.json`` in the avatar's folder, or beside its .safetensors."""
    file = avatar_file(avatar)
    return file.with_name("fit.json" if file.stem == "avatar" else f"{file.stem}.fit.json")


def write_figures(avatar: Path, figures: dict[str, Any]) -> None:
    """Write the figures of a fit to `figures_file`."""
    figures_file(avatar).write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def load_training(avatar: Path, steps: int) -> dict[str, Any]:
    """How an avatar was learned, from its `figures_file`: ``learned_with``, ``learned_from`` and ``curve``.

    Empty if the file is absent or damaged (it may come from anyone), or if the avatar has been trained since, so that
    its number of ``steps`` differs.
    """
    try:
        text = figures_file(avatar).read_text(encoding="utf-8")[:MAX_FILE_CHARS]
        stored = json.loads(text)
        if stored["steps"] != steps:
            return {}
        curve = [
            {name: _finite(point[name]) for name in ("seconds", "psnr_db", "head_psnr_db")} for point in stored["curve"]
        ]
        return {
            "learned_with": str(stored["backend"])[:20],
            "learned_from": str(stored["source"])[:200],
            "curve": curve,
        }
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _finite(value: Any) -> float | None:
    number = float(value) if isinstance(value, int | float) else math.nan
    return number if math.isfinite(number) else None
