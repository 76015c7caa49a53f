"""Evaluation protocol: image metrics of rendered frames against held-out frames, by face region."""

from insta_runtime.evaluation.protocol import score, split
from insta_runtime.evaluation.regions import FaceRegions

__all__ = ["FaceRegions", "score", "split"]
