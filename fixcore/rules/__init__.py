"""What each operation says about the way back: given points in its output, which inputs excited them.

convolution   the winning channel
linear        the exciting inputs
pooling       the winner of a maximum, the strong cells of a mean
attention     the token that was looked at
elementwise   activations, sums, products
normalization the same element; of a vector, what each feature added
layout        views, concatenations, slices: the same element, elsewhere
patches       the pixel that a patch holds, the patch that adds most
"""

from fixcore.rules import attention, convolution, elementwise, layout, linear, normalization, patches, pooling
from fixcore.rules.layout import LAYOUT
from fixcore.rules.pooling import CHOOSES, MIXES
from fixcore.rules.table import FINER, MASS, PAPER, Options, rule

__all__ = [
    "CHOOSES",
    "FINER",
    "LAYOUT",
    "MASS",
    "MIXES",
    "PAPER",
    "Options",
    "attention",
    "convolution",
    "elementwise",
    "layout",
    "linear",
    "normalization",
    "patches",
    "pooling",
    "rule",
]
