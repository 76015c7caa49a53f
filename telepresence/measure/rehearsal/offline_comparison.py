"""Comparison of an avatar learned in a call with an offline fit that trained for the same time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from insta_runtime.evaluation.protocol import score_psnr, split

if TYPE_CHECKING:
    from telepresence.config import Config

HOLDOUT: Final = 0.125
"""Fraction of a tracked folder, at its end, that a call with ``--offline`` does not play; the default of `fit` too."""


def compare_with_fit(avatar: Path, source: Path, head: Path | None, config: Config) -> dict[str, Any]:
    """Measure an avatar that a call saved and one of an offline fit on frames that neither has learned from.

    ``source`` is the tracked folder that the call played, ``head`` its head model.  Returns PSNR of the call's avatar
    minus that of the fit (``online_minus_offline_db``, also of the head), and both; None for a call that saved nothing.
    """
    from insta_runtime.avatar import Avatar, is_stored
    from insta_runtime.backends import choose_backend, make_renderer
    from telepresence.measure.offline.recordings import tracked_recording
    from telepresence.measure.offline.training import learn_avatar

    if not is_stored(avatar):  # nothing was learned
        return {"online_minus_offline_db": None}
    recording = tracked_recording(source, head)
    online = Avatar.load(avatar, recording.head, config.run.device)
    renderer = make_renderer(online.model, choose_backend(config.run.backend, online.model))
    _, held = split(len(recording.observations), HOLDOUT)
    held_back, size = [recording.observations[i] for i in held], config.avatar.learn.size
    whole, of_head = score_psnr(renderer.render, held_back, size, online.model.device)
    fitted = learn_avatar(
        recording, None, seconds=online.seconds, size=size, holdout=HOLDOUT, config=config, baseline=False
    )
    return {
        "online_minus_offline_db": whole - fitted["psnr_db"],
        "head_online_minus_offline_db": of_head - fitted["head_psnr_db"],
        "offline": {
            "training_seconds": online.seconds,
            "online_steps": online.steps,
            "offline_steps": fitted["steps"],
            "online_psnr_db": whole,
            "online_head_psnr_db": of_head,
            "offline_psnr_db": fitted["psnr_db"],
            "offline_head_psnr_db": fitted["head_psnr_db"],
            "pictures": len(held_back),
            "split": f"the last {HOLDOUT:g} of the tracked frames, which neither has learned from",
        },
    }
