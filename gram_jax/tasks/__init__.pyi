from .build import build_hierarchy, from_groups
from .clustering import assign, kmeans
from .config import ClusteringConfig
from .episodes import Episode, EpisodeConfig, Episodes, cohesion, make_episodes
from .hierarchy import Hierarchy, centroid_clip, class_table, load_hierarchy, outline, save_hierarchy

__all__ = [
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
    "from_groups",
    "kmeans",
    "load_hierarchy",
    "make_episodes",
    "outline",
    "save_hierarchy",
]
