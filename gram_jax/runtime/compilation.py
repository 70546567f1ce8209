"""Compilation in a run: how hard XLA tries, and the persistent cache of what it made."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os

import jax
import jaxlib

from gram_jax.io import absolute


def enable_compilation_cache(workdir: str | os.PathLike[str]) -> str:
    """Keeps compiled programs on disk, so that a restarted run does not compile them again.

    This changes JAX's global configuration and is therefore called by programs, never by the library. A cache that the
    user has configured already (``JAX_COMPILATION_CACHE_DIR``) is left as it is. Compiled programs are executable
    code: share the folder only with people you trust.

    Args:
      workdir: the run's folder, local or remote (``gs://...``); the cache is its subfolder ``compilation_cache``.

    Returns:
      The folder in use.

    Example:
      >>> import tempfile, jax
      >>> before = jax.config.jax_compilation_cache_dir
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     enable_compilation_cache(folder).endswith("compilation_cache")
      True
      >>> jax.config.update("jax_compilation_cache_dir", before)

    Reference:
      Our own choice; the cache itself is JAX's persistent compilation cache.
    """
    configured = jax.config.jax_compilation_cache_dir
    if configured:
        return configured
    # A relative path would silently become another folder after a change of directory.
    folder = str(absolute(workdir) / "compilation_cache")
    jax.config.update("jax_compilation_cache_dir", folder)
    return folder


def compile_quickly() -> str:
    """Asks XLA for CPU programs that take two thirds of the time to compile, where a CPU is all there is.

    Fewer of LLVM's passes, and the older emitter of fused loops: measured on the programs of this library, from the
    mini clip to ViT-B/16, their steps take as long as before, because matrix products are a library's either way. This
    adds to ``XLA_FLAGS``, which JAX reads when a device is first used, and is therefore called by programs before that.
    A flag that is set already is left as it is; so is everything where an accelerator's plugin is installed (unless
    ``JAX_PLATFORMS`` is ``cpu``), or another jaxlib than 0.10, which may not know the flags.

    Returns:
      ``XLA_FLAGS`` as they are now.

    Example:
      >>> import os
      >>> before = os.environ.get("XLA_FLAGS")
      >>> os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true"
      >>> compile_quickly()
      '--xla_backend_optimization_level=3 --xla_cpu_use_fusion_emitters=true'
      >>> del os.environ["XLA_FLAGS"]
      >>> os.environ |= {} if before is None else {"XLA_FLAGS": before}

    Reference:
      Our own choice; the flags are XLA's.
    """
    flags = os.environ.get("XLA_FLAGS", "")
    if _only_cpu() and jaxlib.__version__.startswith("0.10."):
        missing = [f"{name}={value}" for name, value in _QUICK if name not in flags]
        flags = os.environ["XLA_FLAGS"] = " ".join([*flags.split(), *missing])
    return flags


_QUICK = (("--xla_backend_optimization_level", "1"), ("--xla_cpu_use_fusion_emitters", "false"))


def _only_cpu() -> bool:
    """Whether JAX will run on the CPU, without asking it: that would choose the devices, and read the flags."""
    if os.environ.get("JAX_PLATFORMS"):
        return os.environ["JAX_PLATFORMS"] == "cpu"
    plugins = [*importlib.metadata.entry_points(group="jax_plugins")]
    return not plugins and not any(importlib.util.find_spec(name) for name in ("jax_plugins", "libtpu"))
