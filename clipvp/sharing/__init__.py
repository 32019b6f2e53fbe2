"""Exact sharing: less work for what all images of a batch have in common, and for what no prompt pixel reaches.

With a padding prompt all pixels outside the image are the same for all images. A feature map then consists of one
map that all images share and, inside a box that grows with the receptive field, a region for each image. Inside the
region lies a core that shrinks with the receptive field; no pixel of the prompt reaches it, so it needs no gradient.
"""

from .core_tape import CoreTape, Read, TapeMismatch, dtype_of
from .network import Held, SplitNetwork, StaleError
from .network_pass import Limits
from .operations import count_operations
from .window import Box, put_together

__all__ = [
    "Box",
    "CoreTape",
    "Held",
    "Limits",
    "Read",
    "SplitNetwork",
    "StaleError",
    "TapeMismatch",
    "count_operations",
    "dtype_of",
    "put_together",
]
