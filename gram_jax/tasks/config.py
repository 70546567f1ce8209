"""The settings of clustering and of episodes."""

from __future__ import annotations

import dataclasses
from typing import Any

from gram_jax.choices import CROSS
from gram_jax.errors import InputError, require_int, require_known, require_number

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


@dataclasses.dataclass(frozen=True)
class EpisodeConfig:
    """The sizes of tasks and the shift of their cross query.

    Attributes:
      ways, shots, queries: classes of a task; support members of each class; other members of each, for the query.
      fewest_shots: smallest number of different support members of a class. Each task draws its number from here to
        `shots`, every doubling with the same probability, and repeats the members until there are `shots`. So one
        compiled step learns from tasks of several sizes. None: as many as `shots`.
      cross: the cross query. "class": other classes of the same theme. "domain": the same classes in other visual
        domains (support and first query share one domain, if it has enough members). "theme": classes of another
        theme. "both": domain in even episodes, theme in odd ones. "pairs": in a hierarchy of pairs (`pair_hierarchy`),
        other pairs of the same attributes and objects.
      cross_queries: members of each class of the cross query.
      cross_ways: classes of the cross query; None: as many as `ways`, which "domain" and "both" require.
      max_tokens: tokens of a class's text including full stop and end token; classes with longer texts are omitted.
        None: as many as 99 % of the classes need.
      cohesive: share of the classes of each theme that tasks are drawn from, those whose members look most alike: the
        mean cosine of the image features of two members ranks the classes. 1: all classes.
      curriculum: share of the training over which the probability of a single theme per episode grows linearly from 0
        to 1; before, the classes come from as many themes as possible. 0: always a single theme.
    """

    ways: int = 16
    shots: int = 2
    fewest_shots: int | None = None
    queries: int = 1
    cross: str = "class"
    cross_queries: int = 2
    cross_ways: int | None = None
    max_tokens: int | None = None
    cohesive: float = 1.0
    curriculum: float = 0.0

    def __post_init__(self) -> None:
        require_int("ways", self.ways, least=2)
        require_int("cross_ways", self.other_ways, least=2)
        require_int("fewest_shots", self.fewest, most=self.shots)
        for name in ("shots", "queries", "cross_queries"):
            require_int(name, getattr(self, name))
        require_known("cross", self.cross, CROSS)
        if self.across_domains and self.other_ways != self.ways:
            raise InputError(
                f"cross_ways={self.cross_ways} and ways={self.ways}: with cross={self.cross!r} both queries have the "
                "same classes; omit cross_ways"
            )
        require_number("curriculum", self.curriculum, least=0)
        require_number("cohesive", self.cohesive, above=0)
        for name, whole in (("curriculum", "training"), ("cohesive", "classes")):
            if getattr(self, name) > 1:
                raise InputError(f"{name}={getattr(self, name)}: it must be a share of the {whole}, at most 1")
        if self.curriculum and self.cross == "pairs":
            raise InputError(f"curriculum={self.curriculum}: tasks of pairs have one theme; omit it with cross='pairs'")

    @property
    def other_ways(self) -> int:
        """The number of classes of the cross query."""
        return self.ways if self.cross_ways is None else self.cross_ways

    @property
    def fewest(self) -> int:
        """The smallest number of different support members of a class."""
        return self.shots if self.fewest_shots is None else self.fewest_shots

    @property
    def across_domains(self) -> bool:
        """Whether some episodes have a cross query in other visual domains."""
        return self.cross in ("domain", "both")

    @property
    def themes(self) -> int:
        """The number of themes that an episode needs."""
        return 2 if self.cross in ("theme", "both") else 1

    @property
    def texts(self) -> int:
        """The number of classes with different texts that a theme needs."""
        return self.ways + self.other_ways if self.cross in ("class", "pairs") else max(self.ways, self.other_ways)

    @property
    def members(self) -> int:
        """The number of members that a class needs."""
        together = self.fewest + self.queries + (self.cross_queries if self.across_domains else 0)
        return max(together, self.cross_queries)
