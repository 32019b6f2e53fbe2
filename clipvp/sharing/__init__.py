"""Exact sharing of the border: what all images of a batch have in common is computed once.

With a padding prompt all pixels outside the image are the same for all images. A feature map then consists of one
map that all images share and, inside a box that grows with the receptive field, a region for each image.
"""

from .network import Held, PairNetwork, StaleError
from .window import Box, put_together

__all__ = ["Box", "Held", "PairNetwork", "StaleError", "put_together"]
