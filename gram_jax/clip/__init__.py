"""The frozen backbone: architecture, forward passes, weights in and out, tokenizer, image transform."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
