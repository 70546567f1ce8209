from .build import build_hierarchy, from_groups
from .clustering import assign, kmeans
from .config import ClusteringConfig, EpisodeConfig
from .episodes import Episode, Episodes, cohesion, make_episodes
from .hierarchy import (
    Hierarchy,
    centroid_clip,
    class_table,
    hierarchy_corpus,
    load_hierarchy,
    outline,
    save_hierarchy,
    text_features,
)
from .pairs import Attributes, find_attributes, pair_hierarchy

__all__ = [
    "Attributes",
    "ClusteringConfig",
    "Episode",
    "EpisodeConfig",
    "Episodes",
    "Hierarchy",
    "assign",
    "build_hierarchy",
    "centroid_clip",
    "class_table",
    "cohesion",
    "find_attributes",
    "from_groups",
    "hierarchy_corpus",
    "kmeans",
    "load_hierarchy",
    "make_episodes",
    "outline",
    "pair_hierarchy",
    "save_hierarchy",
    "text_features",
]
