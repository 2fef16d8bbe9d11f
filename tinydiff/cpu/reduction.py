"""Sums of squares by one call of the linear algebra library, which keeps no squares."""

from __future__ import annotations

from typing import Any


def sum_of_squares(x: Any) -> Any:
    """|x|^2 of x (n,)."""
    return x @ x
