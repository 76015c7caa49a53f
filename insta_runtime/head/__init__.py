"""Parametric head models: the open default head and FLAME files, and the rig that poses them."""

from insta_runtime.head.embedding import LandmarkEmbedding
from insta_runtime.head.load import load_head
from insta_runtime.head.model import HeadModel, fingerprint
from insta_runtime.head.rig import HeadRig

__all__ = ["HeadModel", "HeadRig", "LandmarkEmbedding", "fingerprint", "load_head"]
