"""Self-contained HTML pages: a report, a check of data, a hierarchy, predictions."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
