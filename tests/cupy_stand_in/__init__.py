"""A module that answers as CuPy does, on a machine without a GPU; its arrays live in host memory and refuse what CuPy refuses.

NumPy is more forgiving than CuPy: it takes more keywords, mixes with anything, turns results into scalars. So code that
runs with NumPy may fail with CuPy in its first line. Here every call is held to the signature that CuPy 14.2 has, as
written down in api.json with the options that CuPy adds for the compiler, which

    python -m tests.cupy_stand_in.describe

writes anew where CuPy is installed (no GPU is needed). Beyond signatures it keeps CuPy's rules: no NumPy array gets into an
operation or an index, nothing turns into a NumPy array but by `get`, reductions give arrays of no axes.

Kernels run on the project's stand-in for CUDA, through `RawModule`, so that what launches them is tested too.

While a stream captures, nothing is computed: what a call would launch is recorded, and what CuPy refuses then is refused, see
`streams`. Memory that is freed is overwritten, so that who reads it later gets NaN.

CuPy loads CUDA's libraries when it first needs one. A machine that lacks some is stood in for by their names in `MISSING`.

    signatures.py   what calls take, by api.json; which libraries are missing; counts
    streams.py      the device, streams, events, memory pools, graphs, and what a capture refuses
    arrays.py       arrays, their operators, functions
    module.py       kernels, `cupy.cuda`, the whole module
    nccl.py         NCCL, between processes
    describe.py     writes api.json where CuPy is installed
"""

from tests.cupy_stand_in.module import make, put_in_place
from tests.cupy_stand_in.signatures import COUNTS, MISSING, api

__all__ = ["COUNTS", "MISSING", "api", "make", "put_in_place"]
