"""The avatar: head model, warp, radiance field, rendering, learning.

Needs torch, numpy and safetensors alone; importing it costs nothing and touches no device.
"""

__version__ = "0.1.0"
