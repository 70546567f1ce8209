"""Packages of the wheel; all other metadata is in pyproject.toml, the tested versions in requirements.txt."""

from setuptools import find_packages, setup

setup(
    # In a wheel the programs are gram_jax.experiments, so that gram_jax is the only top-level package installed.
    packages=[
        *find_packages(include=["gram_jax", "gram_jax.*"]),
        *(f"gram_jax.{name}" for name in find_packages(include=["experiments", "experiments.*"])),
    ],
    package_dir={"gram_jax.experiments": "experiments"},
    package_data={
        "gram_jax": ["assets/**/*", "data/**/*.json", "**/*.pyi", "py.typed"],
        "gram_jax.experiments.benchmark": ["*.json"],
    },
)
