"""Errors that can be told by their looks. Each pattern takes the evidence and returns a diagnosis or None."""

from collections.abc import Callable

from tinydiff.gradcheck.evidence import Evidence
from tinydiff.gradcheck.patterns.amounts import (
    constant_ratio,
    exchanged,
    missing_term,
    nonlinear,
    not_finite,
    operand,
    own_factor,
    small,
    upstream,
    zero,
)
from tinydiff.gradcheck.patterns.contributions import accumulation, extra, multiplicity, one_slice, rerouted
from tinydiff.gradcheck.patterns.positions import (
    borders,
    branch,
    mask,
    misplaced,
    shifted,
    some_elements,
    some_indices,
    transposed,
    turned,
)
from tinydiff.gradcheck.report import Diagnosis

# In this order: what is seen first and cannot be mistaken, then the more special before the more general.
PATTERNS: tuple[Callable[[Evidence], Diagnosis | None], ...] = (
    not_finite,
    zero,
    small,
    upstream,
    constant_ratio,
    exchanged,
    transposed,
    one_slice,
    turned,
    shifted,
    misplaced,
    branch,
    borders,
    accumulation,
    multiplicity,
    rerouted,
    operand,
    missing_term,
    nonlinear,
    mask,
    extra,
    own_factor,
    some_indices,
    some_elements,
)
