"""Tasks from unlabeled image-text pairs.

build       `build_hierarchy`: the steps `phrases`, `themes`, `classes`, `naming` and `assemble`, in this order
clustering  k-means and assignment; config: the settings
hierarchy   Hierarchy: files, outline, class tokens
episodes    Hierarchy -> few-shot tasks
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
