"""Summary of a rehearsed call on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from telepresence.measure.offline.scoring import format_figure

if TYPE_CHECKING:
    from rich.console import Console


def print_summary(figures: dict[str, Any]) -> None:
    """Print the most important figures of a rehearsed call (`RehearsedCall.figures`)."""
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"[bold]{figures['device']} · {figures['backend']} · {figures['commit']}[/]")
    for moment in (10, 60):
        known = figures[f"psnr_next2s_at_{moment}s"]
        if known is not None:
            again = " (seen in earlier rounds)" if figures[f"seen_in_earlier_rounds_at_{moment}s"] else ""
            head = format_figure(figures[f"head_psnr_next2s_at_{moment}s"], 2)
            console.print(f"the next 2 s after {moment} s: {format_figure(known, 2)} dB, head {head} dB{again}")
    for name, title in (("interval_ms", "between frames"), ("fresh_interval_ms", "between new frames")):
        spread = figures[name]
        if spread is not None:
            console.print(
                f"{title}: p50 {spread['p50']:.1f}, p99 {spread['p99']:.1f}, max {spread['max']:.1f} ms "
                f"({spread['count']})"
            )
    for name, unit in (
        ("first_picture_s", "s"),
        ("first_avatar_s", "s"),
        ("seconds_to_22db", "s"),
        ("forgetting_db", "dB"),
        ("publish_change_ratio", "x"),
        ("online_minus_offline_db", "dB"),
        ("steps", "steps"),
        ("samples_per_s", "samples a second"),
    ):
        if name in figures:
            console.print(f"{name}: {format_figure(figures[name], 2)} {unit}")
    _print_resources(console, figures["resources"])
    if figures["failure"] is not None:
        console.print(f"[bold red]the call stopped early:[/] {figures['failure']}")


def _print_resources(console: Console, resources: dict[str, Any]) -> None:
    for name, unit in (("host_mb", "MB"), ("device_mb", "MB"), ("threads", "")):
        found = resources[name]
        if found is not None:
            slope = found["slope_per_hour"]
            growth = f", {slope:+.1f} {unit} an hour over the second half" if slope is not None else ""
            console.print(f"{name}: {found['end']:.0f} at the end, {found['max']:.0f} at most{growth}")
    for name in resources["lost_threads"]:
        console.print(f"[bold red]the thread {name} ended during the call[/]")
