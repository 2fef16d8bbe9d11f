"""How fast on a CPU: NumPy and threads, arranged for caches and OpenBLAS. `dispatch` calls these files.

A file with the name of one in `ops` (or of `optim`) holds faster versions of its functions, with the same names and
signatures. The others support these:

    blas.py           products of matrices, and rows added to them, in the sizes that OpenBLAS is fastest at
    patches.py        convolutions by blocks of patches
    few_channels.py   convolutions from or to few channels
    winograd/         3x3 convolutions by Winograd's filtering
"""
