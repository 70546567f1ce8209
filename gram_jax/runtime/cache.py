"""The persistent compilation cache of a run."""

from __future__ import annotations

import os

import jax

from gram_jax.runtime.paths import absolute


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
