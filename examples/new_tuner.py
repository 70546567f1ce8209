# ---
# jupyter:
#   jupytext:
#     formats: py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A new tuner in twenty lines
#
# A tuner is two pure functions, `init` and `apply`. This one learns a low-rank linear map of the frozen text features,
# as LoRA does with weights: t' = normalize(t + (t A) B). B starts at 0, so tuning starts at the zero-shot classifier.
# The map belongs to no class list, so it can be tested on new classes.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax.core import FrozenDict

import gram_jax as gram
from gram_jax.tuners import Outputs, Tuner, frozen_outputs

# %%


def text_map(rank: int = 4) -> Tuner:
    """Learns a low-rank linear map of the text features."""

    def init(key, clip, classes):
        width = clip.config.embed_dim
        return {"a": jax.random.normal(key, (width, rank)) / width**0.5, "b": jnp.zeros((rank, width))}

    def apply(prompt, clip, classes, images):
        frozen = frozen_outputs(clip, classes, images)
        texts = frozen.text_features + frozen.text_features @ prompt["a"] @ prompt["b"]
        texts /= jnp.linalg.norm(texts, axis=-1, keepdims=True)
        scores = gram.logits(frozen.image_features, texts, clip.params["logit_scale"])
        return Outputs(scores, frozen.image_features, texts)

    settings, changes = FrozenDict(rank=rank), frozenset({"text"})
    return Tuner("text_map", settings, init, apply, needs_pixels=False, needs_names=False, changes=changes)


gram.tuners.REGISTRY.register(text_map)

# %% [markdown]
# It is a tuner like any other: it can be named in flags and files, meta-learned, regularized and evaluated. In
# base-to-new it is tuned on the first half of the classes and tested on each half.

# %%
clip = gram.load_clip("mini")
tuners = {
    "CoOp": (gram.tuners.coop(init_text="a photo of a"), 0.3),
    "text_map": (gram.tuners.parse("text_map(rank=8)"), 0.1),
}
accuracy = {}
for name, (tuner, rate) in tuners.items():
    rows = gram.evaluation.evaluate(
        clip, tuner, "glyphs:georgian", "base_to_new", shots=4, seeds=(1, 2, 3), learning_rate=rate, steps=50
    )
    accuracy[name] = {split: [row.value for row in rows if row.split == split] for split in ("base", "new")}
    h = gram.evaluation.harmonic_mean(accuracy[name]["base"], accuracy[name]["new"])
    print(f"{name}: H {100 * np.mean(h):.1f} %")

# %% [markdown]
# Base and new accuracy, one dot per seed.

# %%
figure, axis = plt.subplots(figsize=(5, 3.2))
for place, splits in enumerate(accuracy.values()):
    for shift, values in enumerate(splits.values()):
        spot = place + 0.3 * shift
        axis.bar(spot, 100 * np.mean(values), 0.26, color=("tab:blue", "tab:orange")[shift])
        axis.plot([spot] * len(values), 100 * np.array(values), "k.", markersize=5)
axis.set_xticks([0.15, 1.15], list(accuracy))
axis.set_ylabel("accuracy, %")
axis.set_ylim(40, 100)
axis.legend([plt.Rectangle((0, 0), 1, 1, color=color) for color in ("tab:blue", "tab:orange")], ["base", "new"])
plt.show()

# %% [markdown]
# Regularizers, regulators and files need no further code.

# %%
rows = gram.evaluation.evaluate(
    clip,
    text_map(),
    "glyphs:georgian",
    "few_shot",
    shots=4,
    seeds=(1,),
    learning_rate=0.1,
    steps=20,
    regularizers="kgcoop",
)
print(f"with KgCoOp's regularizer: {100 * rows[0].value:.1f} %")
