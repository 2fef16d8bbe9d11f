"""Stacks of products of matrices, by the kernels in kernels/matrix.cu; all float32."""

from __future__ import annotations

from typing import Any

from tinydiff.cuda import products


def product(A: Any, B: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    """A B for A (..., M, K), B (..., K, N), whose leading axes broadcast -> (..., M, N); see `products.matmul`.

    transpose_a: A is given as (..., K, M); transpose_b: B as (..., N, K).
    """
    return products.matmul(A, B, transpose_a, transpose_b)
