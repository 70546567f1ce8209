"""Files that experiments write."""

from __future__ import annotations

import os

from etils import epath


def replace(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Writes a file, text as UTF-8, that appears whole or not at all."""
    path = epath.Path(path)
    part = path.parent / f"{path.name}.part"
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    part.replace(path)
