"""Choice of the tracker for a camera source."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from insta_runtime.head import HeadModel
    from telepresence.sources import SourceIdentity
    from telepresence.tracking.calibration import Calibration
    from telepresence.tracking.crop import CropPolicy
    from telepresence.tracking.face_models import FaceModels
    from telepresence.tracking.tracker import Tracker


def make_tracker(
    head: HeadModel,
    known: SourceIdentity | None,
    calibration: Calibration | None,
    crop: CropPolicy,
    size: int,
    models: FaceModels,
) -> Tracker:
    """A `FaceTracker`, or a `GroundTruthTracker` for a source that gives ground truth (``known``) for this ``head``.

    ``calibration`` is that of an earlier call or None, ``crop`` the policy of the face crop, ``size`` its side in
    pixels.  Raises UserError if the face ``models`` are needed and not available.
    """
    from telepresence.tracking.calibration import Calibration
    from telepresence.tracking.ground_truth_tracker import GroundTruthTracker
    from telepresence.tracking.tracker import FaceTracker

    if known is not None and known.head_sha256 == head.sha256:
        exact = Calibration.from_json(known.calibration) if known.calibration is not None else None
        return GroundTruthTracker(head, known.shape, size=size, calibration=exact)
    return FaceTracker(head, size=size, crop=crop, models=models, calibration=calibration)
