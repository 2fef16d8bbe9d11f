"""How fast the operations of the U-Net are on this machine, compared with its limits and with PyTorch.

timing.py    competitors in turns, medians; what the machine can do at best
cases.py     the operations, with their work in FLOPs and bytes
torch.py     the same operations in PyTorch
"""
