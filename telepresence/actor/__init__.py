"""The synthetic actor: a rendered person with known parameters, who talks to the camera."""
