"""A classifier as text features for PyTorch, with a script that uses them."""

from __future__ import annotations

import numpy as np
from etils import epath

from gram_jax.errors import InputError
from gram_jax.evaluation.scoring import Scorer
from gram_jax.export.card import CARD, describe
from gram_jax.io import PathLike, write_file, write_json

FEATURES, README = "text_features.safetensors", "README.md"
_SCRIPT = """\
import json, sys
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPImageProcessorPil, CLIPModel

card = json.load(open("classifier.json"))
texts = load_file("text_features.safetensors")["text_features"]
model, processor = CLIPModel.from_pretrained(sys.argv[1]).float(), CLIPImageProcessorPil(**card["preprocessing"])
for path in sys.argv[2:]:
    pixels = processor(Image.open(path).convert("RGB"), return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)
    probabilities = (card["logit_scale"] * torch.nn.functional.normalize(features) @ texts.T).softmax(-1)[0]
    print(path, card["class_names"][probabilities.argmax()], *probabilities.tolist(), sep="\\t")
"""
_PAGE = """\
# A classifier of {count} classes

`text_features.safetensors` holds "text_features", float32 `[{count}, {width}]`: one normalized vector for each class
name in `classifier.json`, made with a {tuner} prompt. The probabilities of an image are
`softmax(logit_scale * normalize(image_features) @ text_features.T)`, with the image features of the CLIP that the
prompt was tuned on (hash of its weights: {digest}...), in Hugging Face's form.

This script needs PyTorch and transformers 5. Save it as `classify.py` in this folder and run there:
`python classify.py FOLDER_OR_NAME_OF_THE_CLIP a.jpg b.jpg`

```python
{script}```
"""


def save_folder(folder: PathLike, scorer: Scorer) -> None:
    """Writes text_features.safetensors, classifier.json, and a README.md with a PyTorch script that uses them.

    Args:
      folder: the folder; made if it does not exist.
      scorer: the classifier, from `evaluation.make_scorer`. Its tuner leaves the image side as it is, and its texts do
        not depend on the image.
    """
    from safetensors.numpy import save

    name, elsewhere = scorer.tuner.name, "export it as stablehlo or onnx"
    if "image" in scorer.tuner.changes and scorer.prompt:
        raise InputError(f"{name} changes the image side, so text features alone do not classify; {elsewhere}")
    if not scorer.texts_are_fixed:
        raise InputError(f"the texts of {name} depend on the image, so they cannot be stored; {elsewhere}")
    if (model_type := scorer.clip.config.model_type) != "clip":
        raise InputError(f"the clip is a {model_type}, and the script in the folder is for CLIP; {elsewhere}")
    card, texts = describe(scorer), np.asarray(scorer.texts, np.float32)
    digest = card["clip_weights_hash"][:12]
    page = _PAGE.format(count=len(texts), width=texts.shape[1], tuner=name, digest=digest, script=_SCRIPT)
    write_file(epath.Path(folder) / FEATURES, save({"text_features": texts}))
    write_json(epath.Path(folder) / CARD, card)
    write_file(epath.Path(folder) / README, page)
