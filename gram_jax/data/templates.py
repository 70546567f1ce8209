"""Templates: one for each of the field's datasets, and the published lists that are averaged into one classifier."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from gram_jax.errors import InputError

FILE = Path(__file__).parent.parent / "assets" / "templates.json"
DEFAULT = "a photo of a {}."
# SHA-256 of the lists' lines, see digest: ten points of accuracy hang on these words.
DATASETS_HASH = "c37d701569f7d27b9d1564d89d544215bc23e4208f6ac4f0a01db36a5845b4df"
ENSEMBLE_HASHES = {
    "clip_7": "6ef3883987d224b7949da69fe0b615af152e1560eaac4c5c38555e50c882d415",
    "promptsrc_60": "dc3398ed3ffc7c259342582bc0f36d7ac66c4dee17981a37b77b0fc9c23d4f72",
    "clip_80": "4f976686fb651bb5803d4689dcd849f75efe0ef19a3c801355bc9a6f03c8a5af",
}
ENSEMBLES = tuple(ENSEMBLE_HASHES)


def digest(lines: Iterable[str]) -> str:
    """SHA-256 of lines joined by newlines, as UTF-8.

    Args:
      lines: any texts.

    Returns:
      64 hexadecimal digits.

    Example:
      >>> digest(ensemble("clip_80")) == ENSEMBLE_HASHES["clip_80"]
      True

    Reference:
      Our own choice.
    """
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def dataset_template(dataset: str) -> str:
    """The hand-written template of one of the field's datasets.

    Args:
      dataset: a name of ``coop.NAMES``, for example "dtd".

    Returns:
      A text with one "{}" for the class name.

    Raises:
      InputError: for a name that is not in the table, which the message lists.

    Example:
      >>> dataset_template("oxford_pets")
      'a photo of a {}, a type of pet.'

    Reference:
      Zhou et al., "Learning to Prompt for Vision-Language Models" (2022), the templates of its zero-shot CLIP.
    """
    table = _tables()["datasets"]
    if dataset not in table:
        raise InputError(f"there is no template for {dataset!r}; the table holds {', '.join(table)}")
    return table[dataset]


def ensemble(name: str) -> tuple[str, ...]:
    """A published list of templates, whose text features are averaged into one classifier.

    "clip_80" are the 80 templates that CLIP's paper reports ImageNet with, "clip_7" the seven that forward selection
    chose among them (in the order of choice), "promptsrc_60" those whose mean feature PromptSRC holds prompts to.

    Args:
      name: one of ``ENSEMBLES``.

    Returns:
      Texts with one "{}" each, in the published order.

    Raises:
      InputError: for another name.

    Example:
      >>> ensemble("clip_7")[:2], len(ensemble("promptsrc_60"))
      (('itap of a {}.', 'a bad photo of the {}.'), 60)

    Reference:
      Radford et al. (2021), notebook "Prompt Engineering for ImageNet"; Khattak et al., "Self-regulating Prompts"
      (2023), public code.
    """
    if name not in ENSEMBLES:
        raise InputError(f"there is no ensemble of templates {name!r}; choose among {', '.join(ENSEMBLES)}")
    return tuple(_tables()["ensembles"][name])


@functools.cache
def _tables() -> dict:
    """The file, once its words have been found to be those that the hashes stand for."""
    tables = json.loads(FILE.read_text(encoding="utf-8"))
    found = {"datasets": digest(f"{name}\t{template}" for name, template in tables["datasets"].items())}
    found |= {name: digest(lines) for name, lines in tables["ensembles"].items()}
    for name, expected in {"datasets": DATASETS_HASH, **ENSEMBLE_HASHES}.items():
        if found.get(name) != expected:
            raise InputError(
                f"{FILE}: the templates {name!r} are not the published ones (SHA-256 {found.get(name)}, expected "
                f"{expected}); install the package again, and give templates of your own by flag"
            )
    return tables
