"""Tasks from unlabeled image-text pairs.

build       `build_hierarchy`: the steps `phrases`, `themes`, `classes`, `naming` and `assemble`, in this order
clustering  k-means and assignment; config: the settings
hierarchy   Hierarchy: files, outline, class tokens
episodes    Hierarchy -> few-shot tasks
"""

from gram_jax.tasks.build import build_hierarchy, from_groups
from gram_jax.tasks.clustering import assign, kmeans
from gram_jax.tasks.config import ClusteringConfig
from gram_jax.tasks.episodes import Episode, EpisodeConfig, Episodes, cohesion, make_episodes
from gram_jax.tasks.hierarchy import Hierarchy, centroid_clip, class_table, load_hierarchy, outline, save_hierarchy

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
