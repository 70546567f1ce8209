"""A Griffe extension for the API pages: shows the `Example:` section of a docstring as code."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Renames `Example:` to `Examples:`, which Griffe reads as doctests, and keeps brackets from becoming links."""

    def on_instance(self, *, obj: griffe.Object, **unused: Any) -> None:
        """Rewrites the docstring of a loaded object."""
        if obj.docstring is not None:
            lines = obj.docstring.value.split("\n")
            obj.docstring.value = "\n".join(_shown(line) for line in lines)


def _shown(line: str) -> str:
    if line.strip() == "Example:":
        return line.replace("Example:", "Examples:")
    # "[a][b]" is a link in Markdown; a space of no width between the brackets leaves it a text.
    return line if line.lstrip().startswith((">>>", "...")) else re.sub(r"\](?= ?\[)", "]\u200b", line)
