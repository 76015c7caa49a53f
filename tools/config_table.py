"""Write docs/configuration.md from the dataclasses that define the settings: ``python tools/config_table.py``."""

from __future__ import annotations

import sys
from itertools import groupby
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from insta_runtime.config import Setting  # noqa: E402
from telepresence.config import preset_names, settings  # noqa: E402

PAGE = ROOT / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by tools/config_table.py (`make docs`) from the code: edit it there. -->

`run`, `track`, `fit`, `evaluate`, `render` and `rehearse` take `--config FILE|PRESET` and `--set key=value`
(repeatable). Without `--config` the preset is `default` where there is a CUDA device, else `cpu`. The presets are
{presets}. Then come the `--set` values, then the flags of the command. Unknown keys and values out of bounds are
refused.

A file is TOML; it may build on a preset:

```toml
preset = "cpu"

[run]
size = 384

[avatar.learn]
rays = 1024
```

The same on the command line: `--config cpu --set run.size=384 --set avatar.learn.rays=1024`."""


def page() -> str:
    """Text of docs/configuration.md."""
    parts = [INTRODUCTION.format(presets=", ".join(f"`{name}`" for name in preset_names()))]
    for group, entries in groupby(settings(), key=lambda entry: entry.key.rpartition(".")[0]):
        parts += [f"\n## {group}\n", "| key | default | admits | meaning |", "|---|---|---|---|"]
        parts += [_row(entry) for entry in entries]
    return "\n".join(parts) + "\n"


def _row(entry: Setting) -> str:
    return (
        f"| `{entry.key}` | {_value(entry.default)} {entry.unit}".rstrip() + f" | {_admits(entry)} | {entry.meaning} |"
    )


def _value(value: object) -> str:
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if value == "":
        return "empty"
    return f"`{value}`"


def _admits(entry: Setting) -> str:
    if entry.choices:
        return " ".join(f"`{choice}`" for choice in entry.choices)
    if entry.type is bool:
        return "`true` `false`"
    if entry.type is str:
        return "text"
    kind = "whole number" if entry.type is int else "number"
    low = "" if entry.ge is None else f"{entry.ge:.10g}"
    high = "" if entry.le is None else f"{entry.le:.10g}"
    return f"{kind}, {low} … {high}" if low or high else kind


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
