"""The frozen backbone: a Flax port of CLIP, verified against PyTorch.

From an image and a class name to logits:

1. `formats/` loads a checkpoint into a `Clip` (`model.py`): parameters, sizes (`config.py`), tokenizer, transform.
2. `images.py` decodes an image and transforms it to floats `[size, size, 3]`.
3. `tokenizer.py` turns class names into token ids, and `classes.py` packs them into rows (`Classes`).
4. `forward.py` holds the public passes and checks arguments (`validation.py`): `encode_image` runs the transformer in
   `vision.py` (or the ResNet in `resnet.py`), `encode_classes` the one in `text.py`, each optionally under a prompt
   (`prompts.py`).
5. Both stack the layer in `modules.py` and end in normalized features; `logits` scales their cosine similarities.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
