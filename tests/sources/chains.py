"""Closed forms of whole forward chains, which several chapters' tests compare with."""

import numpy as np


def joint_of_chain(schedule, variance):
    """The covariance of (x_0, ..., x_T) in one dimension."""
    ab = schedule.alpha_bar
    of_each = ab * variance + 1 - ab
    i, j = np.meshgrid(np.arange(len(ab)), np.arange(len(ab)), indexing="ij")
    low, high = np.minimum(i, j), np.maximum(i, j)
    return np.sqrt(ab[high] / ab[low]) * of_each[low]
