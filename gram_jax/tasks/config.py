"""The settings of clustering."""

from __future__ import annotations

import dataclasses
from typing import Any

from gram_jax.errors import require_int, require_known

SAMPLE = 100_000  # the default limit of the pairs among which centroids are searched
METHODS = ("clusters", "random")
CLASS_TEXTS = ("keyword", "medoid", "centroid")


@dataclasses.dataclass(frozen=True)
class ClusteringConfig:
    """The settings of `build_hierarchy` and `from_groups`.

    Attributes:
      themes: number of themes to search.
      classes: number of classes for k-means over all themes, with half as many small clusters (at most 1,700).
        0: one per 12 pairs.
      class_text: the text of a class. "keyword": the phrase that its captions share. "medoid": the caption nearest to
        its mean text feature, cut to the clip's context length. "centroid": a token of its own, the TF-IDF-weighted
        mean of the token embeddings of its captions' words, for `centroid_clip`.
      domains: visual domains of a class with at least three members for each; smaller classes have one.
      min_members: smaller classes are omitted, and then themes with a single class.
      method: "clusters"; or "random", the control: random pairs in classes of the same sizes, in themes of the same
        sizes, with names by the same rule.
      sample: largest number of pairs among which centroids are searched, and of small clusters. `Hierarchy.about`
        contains it if it is smaller than the number of pairs.
      seed: seed of k-means, of the sample, and of the random control.
    """

    themes: int = 120
    classes: int = 0
    class_text: str = "keyword"
    domains: int = 2
    min_members: int = 6
    method: str = "clusters"
    sample: int = SAMPLE
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("themes", "domains", "min_members", "sample"):
            require_int(name, getattr(self, name))
        require_int("classes", self.classes, least=0)
        require_known("class_text", self.class_text, CLASS_TEXTS)
        require_known("method", self.method, METHODS)

    def about(self, pairs: int, *, groups: bool = False) -> dict[str, Any]:
        """Returns the settings for `Hierarchy.about`, given the number of pairs; `groups`: those of `from_groups`."""
        names = ["domains", "min_members", "seed"]
        if not groups:
            names = ["themes", "classes", "class_text", *names, *(["sample"] if self.sample < pairs else [])]
        settings = {name: getattr(self, name) for name in names}
        return {"method": "groups" if groups else self.method, "settings": settings}
