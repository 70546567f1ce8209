"""Classifiers for other runtimes: a StableHLO program, an ONNX graph, text features for PyTorch."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
