"""Local and remote folders under one type."""

from __future__ import annotations

import os

from etils import epath


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """The path with the current folder filled in; remote paths (``gs://...``) are absolute already.

    Args:
      path: a local path or a URL that ``etils.epath`` knows.

    Returns:
      An absolute path. (``epath.Path.resolve`` would turn ``gs://bucket`` into a local folder of that name.)

    Example:
      >>> str(absolute("gs://bucket/run")), absolute("run").is_absolute()
      ('gs://bucket/run', True)

    Reference:
      Our own choice.
    """
    path = epath.Path(path)
    return path if "://" in os.fspath(path) else epath.Path(os.path.abspath(path))
