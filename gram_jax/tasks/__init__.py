"""Tasks from unlabeled pairs: clustering a corpus into a hierarchy, and drawing episodes from it."""

from gram_jax.tasks.build import build_hierarchy, from_groups
from gram_jax.tasks.clustering import assign, kmeans
from gram_jax.tasks.episodes import Episode, Episodes, make_episodes
from gram_jax.tasks.hierarchy import Hierarchy, centroid_clip, class_table, load_hierarchy, outline, save_hierarchy

__all__ = [
    "Episode",
    "Episodes",
    "Hierarchy",
    "assign",
    "build_hierarchy",
    "centroid_clip",
    "class_table",
    "from_groups",
    "kmeans",
    "load_hierarchy",
    "make_episodes",
    "outline",
    "save_hierarchy",
]
