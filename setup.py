from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

setup(
    name="tinydiff",
    version=run_path("tinydiff/version.py")["__version__"],
    description="Trains and samples small DDPMs without PyTorch: automatic differentiation by hand on NumPy and CuPy",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=[*find_packages(include=["tinydiff", "tinydiff.*"]), "tinydiff.kernels_src"],
    package_dir={"tinydiff.kernels_src": "kernels"},
    package_data={
        "tinydiff.study": ["*.js", "*.css"],
        "tinydiff.cuda": ["occupancy.json"],
        "tinydiff.kernels_src": ["*.cu", "*.cuh", "*.h", "host/*"],
    },
    install_requires=["numpy>=2", "pillow>=10.1", "tqdm", "safetensors", "threadpoolctl"],
    extras_require={
        # ctk: NVRTC, CUDA's headers and the libraries that CuPy loads; its wheels alone bring none of them
        "cuda12": ["cupy-cuda12x[ctk]>=14", "ml_dtypes"],
        "cuda13": ["cupy-cuda13x[ctk]>=14", "ml_dtypes"],
        "plot": ["matplotlib"],
        "tensorboard": ["tensorboardX>=2.6"],
        "mpi": ["mpi4py>=4"],
        "study": ["igraph"],
        "docs": ["pdoc"],
        "test": [
            "pytest",
            "pytest-xdist",
            "import-linter",
            "igraph",
            "tensorboardX>=2.6",
            "ml_dtypes",
            "setuptools>=70.1",
            "nvidia-cuda-nvrtc; platform_system == 'Linux'",
            "cuda-bindings; platform_system == 'Linux'",
        ],
        "browser": ["selenium", "igraph"],
        "notebook": ["jupytext", "nbclient", "ipykernel"],  # the examples, run as notebooks
        "parity": ["torch", "diffusers", "onnx"],
    },
    entry_points={"console_scripts": ["tinydiff = tinydiff.cli:main"]},
)
