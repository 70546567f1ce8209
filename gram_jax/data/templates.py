"""Templates: the default one, and the published lists whose text features are averaged into one classifier."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from gram_jax.errors import InputError, require_known

FILE = Path(__file__).parent.parent / "assets" / "templates.json"
DEFAULT = "a photo of a {}."
# SHA-256 of the lists, see `digest`: changed words change accuracies by up to ten points.
ENSEMBLE_HASHES = {
    "clip_7": "6ef3883987d224b7949da69fe0b615af152e1560eaac4c5c38555e50c882d415",
    "promptsrc_60": "dc3398ed3ffc7c259342582bc0f36d7ac66c4dee17981a37b77b0fc9c23d4f72",
    "clip_80": "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af",
}
ENSEMBLES = tuple(ENSEMBLE_HASHES)


def digest(lines: Iterable[str]) -> str:
    """Returns the SHA-256 of lines joined by newlines, as UTF-8.

    Example:
      >>> digest(ensemble("clip_80")) == ENSEMBLE_HASHES["clip_80"]
      True
    """
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def ensemble(name: str) -> tuple[str, ...]:
    """Returns a published list of templates, texts with one "{}" each.

    "clip_80" are the 80 templates with which CLIP's paper reports ImageNet, "clip_7" the seven that forward selection
    chose among them (in the order of choice), "promptsrc_60" those of PromptSRC's textual diversity.

    Example:
      >>> ensemble("clip_7")[:2], len(ensemble("promptsrc_60"))
      (('itap of a {}.', 'a bad photo of the {}.'), 60)

    Reference:
      Radford et al. (2021), notebook "Prompt Engineering for ImageNet"; Khattak et al., "Self-regulating Prompts"
      (2023), public code.
    """
    require_known("ensemble of templates", name, ENSEMBLES)
    return tuple(_ensembles()[name])


@functools.cache
def _ensembles() -> dict[str, list[str]]:
    """Returns the lists after checking their hashes."""
    ensembles = json.loads(FILE.read_text(encoding="utf-8"))["ensembles"]
    for name, expected in ENSEMBLE_HASHES.items():
        actual = digest(ensembles.get(name, ()))
        if actual != expected:
            raise InputError(
                f"{FILE}: the templates {name!r} are not the published ones (SHA-256 {actual}, expected {expected}); "
                "install the package again, and give other templates by flag"
            )
    return ensembles
