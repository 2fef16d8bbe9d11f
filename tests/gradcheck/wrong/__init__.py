"""Wrong backward passes as students write them, each with one slip and the line and kind of it as its label."""

from wrong import arrays, images, layers, losses, sequences
from wrong.base import Wrong

WRONG: list[Wrong] = [wrong for family in (layers, losses, images, sequences, arrays) for wrong in family.WRONG]
