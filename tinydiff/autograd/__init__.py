"""Automatic differentiation.

tensor.py      a tensor: an array that remembers what it was computed from
function.py    an operation: forward and backward on plain arrays
tape.py        what was computed from what, and the walk back
hooks.py       functions that see gradients on their way
numpy_calls.py what NumPy's functions do with tensors
conversion.py  where values leave the tape
copying.py     copies of tensors, pickle
notebook.py    heat maps
recompute.py   blocks computed again in backward instead of kept
profile.py     where the time of a step goes
"""
