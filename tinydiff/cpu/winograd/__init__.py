"""Convolutions with 3x3 filters and stride 1 by Winograd's minimal filtering F(4x4, 3x3), on the CPU.

A 4x4 tile of outputs of one channel depends on a 6x6 tile d of the input through a 3x3 filter g. Along one axis, the 4
outputs are coefficients of a product of polynomials. Such a product follows from its values at 6 points: evaluate both
factors, multiply value by value, interpolate (Toom and Cook; as an algorithm for convolutions: Lavin and Gray, 2016,
"Fast algorithms for convolutional neural networks", section 4). With matrices B^T (6, 6), G (6, 3) and A^T (4, 6) for
these three steps, applied along both axes,

    y = A^T [ (G g G^T) * (B^T d B) ] A        (4, 4) from (3, 3) and (6, 6); * is element by element

That takes 36 multiplications where the definition takes 144. With C input channels, K filters and T tiles, each of the 36
pairs of points ("frequencies" below) has its own product of matrices. In the names used here, with an index f for each:

    V_f = B^T x B    (T, C)        M_f = V_f U_f    (T, K)
    U_f = G w G^T    (C, K)        y = A^T M A

All of this is linear in x, in w and in y, so the gradients pass through the transposed steps:

    L_M = A L_y A^T    (36, T, K)
    L_U = V^T L_M      (36, C, K)        L_w = G^T L_U G

L_x is the convolution of L_y with the filters turned by 180 degrees, which turns the columns of G around.

Sums of the transforms cancel in part, so rounding errors are larger than those of the definition. How much larger depends
on the points. With 0, +-1/sqrt(2), +-sqrt(2) and infinity the error against float64 is 2 to 4 times that of the
definition in float32; with the usual integers 0, +-1, +-2 it is 4 to 11 times. Integers would only save multiplications
by 0 and 1, which a product of matrices does anyway.

    transforms.py    the matrices, and filters to U and back
    tiles.py         images to V and from M
    plan.py          who computes what, in which memory
    convolution.py   which convolutions are computed this way, and the functions that compute them
"""

from tinydiff.cpu.winograd.convolution import (
    convolve,
    convolve_input_gradient,
    convolve_weight_gradient,
    upsample_convolve,
    upsample_convolve_input_gradient,
    upsample_convolve_weight_gradient,
)

__all__ = [
    "convolve",
    "convolve_input_gradient",
    "convolve_weight_gradient",
    "upsample_convolve",
    "upsample_convolve_input_gradient",
    "upsample_convolve_weight_gradient",
]
