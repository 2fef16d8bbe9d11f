# %% [markdown]
# # 4. Normalisation's three terms
#
# Normalisation takes some numbers, subtracts their mean u and divides by their standard deviation s:
#
#     z_i = (x_i - u) / s            u = mean(x),   s = sqrt(mean((x - u)^2) + eps)
#
# An x_i reaches z_j in three ways: directly if i = j, through u, and through s. With L_z given, the three ways are
#
#     L_x_i = ( L_z_i                direct: dz_i/dx_i = 1/s
#               - mean(L_z)          by u: each z_j falls by 1/(n s)
#               - z_i mean(L_z z)    by s: ds/dx_i = z_i / n, and dz_j/ds = -z_j / s
#             ) / s
#
# Layer, batch, group and instance normalisation are this formula along other axes.

# %%
import numpy as np
from picture import image, options, panels, save

import tinydiff as td

args = options("04_normalisation")
rng = np.random.default_rng(1)
EPS = 1e-5


def normalise(X, axes):
    u = X.mean(axes, keepdims=True)
    s = np.sqrt(((X - u) ** 2).mean(axes, keepdims=True) + EPS)
    return (X - u) / s, s


def three_terms(L_Z, X, axes):
    """What comes to X directly, through the mean, and through the standard deviation."""
    Z, s = normalise(X, axes)
    return L_Z / s, -L_Z.mean(axes, keepdims=True) / s + 0 * X, -Z * (L_Z * Z).mean(axes, keepdims=True) / s


# %% [markdown]
# One row of eight numbers. Without the second and third term the gradient is wrong, and in a network trained with it nothing
# would say so. Differences do.

# %%
x, L_z = rng.normal(2, 3, 8), rng.normal(size=8) + 0.5
terms = three_terms(L_z, x, 0)
numerical = td.numerical_gradient(lambda x: (L_z * normalise(x, 0)[0]).sum(), x)
print("largest error of L_x")
errors = {}
for name, some in {"direct alone": terms[:1], "and by the mean": terms[:2], "and by the deviation": terms}.items():
    errors[name] = abs(sum(some) - numerical).max()
    print(f"    {name:20} {errors[name]:.1e}")
assert np.allclose(sum(terms), numerical, rtol=1e-6, atol=1e-9)

# %% [markdown]
# Why these terms? z does not change if x is shifted or (but for eps) stretched around its mean. So the loss has slope 0 along
# both directions, (1, .., 1) and z: the second term takes the first direction out of L_z, the third term the other.

# %%
L_x = sum(terms)
z, s = normalise(x, 0)
print(f"\nsum of L_x {L_x.sum():.1e}; L_x along z {L_x @ z:.1e}")
assert abs(L_x.sum()) < 1e-12 and abs(L_x @ z) < 1e-4  # the latter is not 0 because of eps
on_z = L_z - L_z.mean()
on_z -= z * (on_z @ z) / (z @ z)  # L_z without its parts along (1, .., 1) and z
assert np.allclose(L_x, on_z / s, atol=1e-5)
jacobian = td.numerical_jacobian(lambda x: normalise(x, 0)[0], x)
assert np.allclose(s * jacobian @ (s * jacobian), s * jacobian, atol=1e-5)  # s J is a projection

# %% [markdown]
# The same lines, other axes. Images are (N, H, W, C).

# %%
X, L_Z = rng.normal(size=(2, 3, 3, 4)), rng.normal(size=(2, 3, 3, 4))


def by_tape(f):
    X_ = td.Tensor(X, requires_grad=True)
    f(X_).backward(L_Z)
    return X_.grad


def grouped(A):  # (N, H, W, C) -> (N, H, W, 2 groups, C / 2)
    return A.reshape(2, 3, 3, 2, 2)


assert np.allclose(sum(three_terms(L_Z, X, 3)), by_tape(td.ops.layer_norm))
assert np.allclose(sum(three_terms(L_Z, X, (0, 1, 2))), by_tape(td.nn.BatchNorm(4)), rtol=1e-5)
groups = sum(three_terms(grouped(L_Z), grouped(X), (1, 2, 4)))
assert np.allclose(groups.reshape(X.shape), by_tape(lambda X: td.ops.group_norm(X, 2)))
print("\nlayer, batch and group normalisation: the same three terms")

# %%
figure, axes = panels(1, 4, 3.7, 3.6)
at = np.arange(8)
for i, (term, name) in enumerate(zip(terms, ("direct", "by the mean", "by the deviation"), strict=True)):
    axes[0, 0].bar(at + 0.27 * (i - 1), term, 0.25, label=name)
axes[0, 0].plot(at, numerical, "k_", markersize=18, label="their sum = by differences")
axes[0, 0].set(title="L_x of one row", xlabel="i", ylim=(None, 1.2))
axes[0, 0].legend(fontsize=8)
image(axes[0, 1], jacobian, "dz_j / dx_i: all elements\nreach each other", text=".1f")
axes[0, 2].bar(range(3), errors.values(), color=["tab:blue", "tab:orange", "tab:green"])
axes[0, 2].set(title="largest error of L_x", yscale="log", xticks=range(3))
axes[0, 2].set_xticklabels(["direct\nalone", "and by\nthe mean", "and by the\ndeviation"])
colours = np.array([[1, 1, 1, 1], [0.35, 0.35, -0.35, -0.35], [-1, 0.7, -0.6, 0.35]])
image(axes[0, 3], colours, "same colour: normalised together\n(columns: channels)", limit=1.6)
texts = [
    "layer: a pixel's\nchannels",
    "group: an image's pixels,\nsome channels",
    "batch: all images' pixels,\none channel",
]
for row, text in enumerate(texts):
    axes[0, 3].text(1.5, row, text, ha="center", va="center", fontsize=9)
save(figure, args)
