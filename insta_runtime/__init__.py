"""Avatar runtime: head model, warp, radiance field, rendering and training of one subject's avatar.

Requires only torch, numpy and safetensors.  Importing the package loads none of them and uses no device.
"""

__version__ = "0.1.0"
