"""Package metadata; tool settings are in pyproject.toml, the tested versions in requirements.txt."""

from pathlib import Path

from setuptools import find_packages, setup

TEST = [
    "chex>=0.1.90",
    "hypothesis>=6.100",
    "pytest>=8",
    "pytest-xdist>=3.6",
    "ruff>=0.12",
]

setup(
    name="gram_jax",
    version="0.1.0",
    description="Prompt tuning and meta-prompt learning of CLIP-like models in JAX and Flax",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    # In a wheel the programs are gram_jax.experiments, so that no other top-level package is installed.
    packages=[
        *find_packages(include=["gram_jax", "gram_jax.*"]),
        *(f"gram_jax.{name}" for name in find_packages(include=["experiments", "experiments.*"])),
    ],
    package_dir={"gram_jax.experiments": "experiments"},
    package_data={"gram_jax": ["assets/**/*", "data/**/*.json", "**/*.pyi", "py.typed"]},
    install_requires=[
        "absl-py>=2.1",
        "array_record>=0.8",
        "etils[epath]>=1.9",
        "flax>=0.12",
        "fonttools>=4.50",
        "grain>=0.2.10",  # draws episodes ahead, in threads or processes
        "huggingface_hub>=1.31",
        "importlib_resources>=6",  # tensorflow-datasets needs it to build a dataset, and does not say so
        "jax>=0.10",
        "lazy_loader>=0.4",
        "matplotlib>=3.10",  # plots, and the typefaces of the embedded world
        "numpy>=2.0",
        "optax>=0.2.5",
        "orbax-checkpoint>=0.12",
        "pillow>=11",
        "safetensors>=0.6",
        "scikit-learn>=1.5",  # k-means
        "scipy>=1.14",
        "tensorflow-datasets>=4.9.9",
        "threadpoolctl>=3.5",  # k-means on one thread repeats to the last bit
        "tokenizers>=0.22",
        "tqdm>=4.66",
        "transformers>=5",
    ],
    extras_require={
        "test": TEST,
        "torch": ["torch==2.13.0"],  # the reference that tests and experiments.benchmark compare with
        "tpu": ["jax[tpu]"],
        "cuda13": ["jax[cuda13]"],
        "gcs": ["gcsfs>=2025.3"],  # gs:// work directories
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
