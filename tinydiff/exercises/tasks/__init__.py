"""The exercises. Each file is one: its text, a forward pass, the model solution, inputs and hints.

A learner's file is made of it: the bodies of the functions in WRITE are left out, and so are WRITE, WRT and HINTS. WRT names the
inputs that have a gradient, where not all floating point ones do.
"""

ORDER = (
    "chain_rule",
    "fully_connected",
    "broadcasting",
    "relu",
    "embedding",
    "softmax_cross_entropy",
    "layer_norm",
    "batch_norm",
    "max_pool",
    "convolution",
    "attention",
    "recurrent",
    "reparameterisation",
    "diffusion_loss",
)
