"""A catalogue of planted bugs: operations that are right but for one slip that people make, each with what it is.

`expected` is the code of the diagnosis that fits; a check of the bug has to fail, and its first diagnosis has to be that.
"""

from planted import arrays, convolution, elementwise, losses, memory, products, reductions
from planted.base import Planted

CATALOGUE: list[Planted] = [
    planted
    for family in (products, elementwise, reductions, losses, convolution, arrays, memory)
    for planted in family.PLANTED
]
