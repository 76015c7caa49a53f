"""Parameters of the Adam optimiser (Kingma and Ba 2015) for the field and the pose refinement."""

BETA1, BETA2 = 0.9, 0.99
"""Decay rates of the first and second moment per step."""
EPSILON = 1e-15
"""Adam's epsilon: small, because the gradients of rarely sampled grid cells are tiny and must count in full."""
