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
# # Your own photos in ten cells
#
# From a folder of photos to a classifier that can be saved and shared. The photos are drawn here, so that the notebook
# runs anywhere in under a minute; replace `PHOTOS` by your own folder, and `"mini"` by a real CLIP such as
# `"openai/clip-vit-base-patch16"`.

# %%
import random
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from PIL import Image, ImageDraw

import gram_jax as gram

PHOTOS = Path(tempfile.mkdtemp()) / "photos"

# %% [markdown]
# Photos of four machine parts, one folder per class. They differ in place, size, shade and rotation.

# %%
PARTS = ("bolt", "nut", "washer", "bracket")
random.seed(0)


def photograph(part: str) -> Image.Image:
    """Draws a part on a pale ground."""
    ground, metal = (random.randrange(215, 256),) * 3, (random.randrange(0, 110),) * 3
    image = Image.new("RGB", (64, 64), ground)
    pen, size = ImageDraw.Draw(image), random.randrange(12, 18)
    if part == "bolt":
        pen.rectangle((28, 24, 36, 32 + size), fill=metal)
        pen.regular_polygon((32, 20, 10), 6, fill=metal)
    elif part == "bracket":
        pen.line((32 - size, 32 - size, 32 - size, 32 + size, 32 + size, 32 + size), metal, 8)
    else:
        pen.regular_polygon((32, 32, size), 6 if part == "nut" else 60, fill=metal)
        pen.ellipse((32 - size / 2, 32 - size / 2, 32 + size / 2, 32 + size / 2), fill=ground)
    shift = (random.randrange(-6, 7), random.randrange(-6, 7))
    return image.rotate(random.randrange(360), Image.Resampling.BICUBIC, translate=shift, fillcolor=ground)


for part in PARTS:
    (PHOTOS / part).mkdir(parents=True)
    for number in range(30):
        photograph(part).save(PHOTOS / part / f"IMG_{number:04d}.png")

# %% [markdown]
# `folder:PATH` opens the folder: half of each class is for training, 20 % for validation, the rest for the test.

# %%
dataset = gram.data.load_dataset(f"folder:{PHOTOS}")
print(dataset.class_names, {split: len(dataset.select(split)) for split in ("train", "val", "test")})

figure, axes = plt.subplots(2, 6, figsize=(9, 3.2))
for axis, position in zip(axes.ravel(), np.random.default_rng(0).permutation(len(dataset)), strict=False):
    axis.imshow(Image.open(dataset.images([position])[0]))
    axis.set_title(dataset.class_names[dataset.labels[position]], fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# Zero-shot: the frozen CLIP without a prompt, on the test photos.

# %%
clip = gram.load_clip("mini")
classes = clip.class_tokens(dataset.class_names)
test = dataset.take(dataset.select("test"))
features = gram.encode_image(clip, clip.preprocess(test.images(range(len(test)))))  # frozen, computed once
zero_shot = gram.tuners.frozen_outputs(clip, classes, features).logits
print(f"zero-shot: {100 * np.mean(zero_shot.argmax(axis=1) == test.labels):.1f} %")

# %% [markdown]
# CoOp, tuned on 4 photos per class, for three draws of these photos. (`python -m experiments.evaluate
# --dataset=folder:PHOTOS` also chooses the learning rate on the validation photos.)

# %%
tuner = gram.tuners.coop(init_text="a photo of a")
rows = gram.evaluation.evaluate(clip, tuner, dataset, "few_shot", shots=4, seeds=(1, 2, 3), learning_rate=1.0, steps=50)
measured = gram.evaluation.summarize([row.value for row in rows])
print(f"CoOp: {100 * measured.mean:.1f} % ±{50 * np.ptp(measured.ci95):.1f}")

# %% [markdown]
# The same by hand, for one prompt to keep: all training photos, a regular Optax loop.

# %%
train = dataset.take(dataset.select("train"))
images = gram.encode_image(clip, clip.preprocess(train.images(range(len(train)))))
batch = {"classes": classes, "images": images, "labels": jnp.asarray(train.labels)}
loss = gram.tuning.classification_loss(tuner)
prompt = tuner.init(jax.random.key(0), clip, classes)
optimizer = optax.sgd(optax.cosine_decay_schedule(1.0, 60))
state = optimizer.init(prompt)


@jax.jit
def step(prompt, state, clip, batch):
    """Takes one optimizer step."""
    value, grads = jax.value_and_grad(loss)(prompt, clip, batch)
    updates, state = optimizer.update(grads, state)
    return optax.apply_updates(prompt, updates), state, value


for number in range(60):
    prompt, state, value = step(prompt, state, clip, batch)
    if number % 20 == 0:
        print(f"step {number:2d}: loss {value:.3f}")

# %% [markdown]
# A prompt is a file of a few kilobytes. The file names its tuner, so its path is enough to load it.

# %%
path = PHOTOS.parent / "parts.safetensors"
gram.save_prompt(path, prompt, tuner, clip)
loaded = gram.load_prompt(path, clip)
print(f"{path.stat().st_size} bytes, tuner {loaded.tuner.name}")

# %% [markdown]
# Predictions on the test photos, with their probabilities.

# %%
outputs = loaded.tuner.apply(loaded.prompt, clip, classes, features)
probabilities = np.asarray(jax.nn.softmax(outputs.logits))
predicted = probabilities.argmax(axis=1)
print(f"tuned prompt: {100 * np.mean(predicted == test.labels):.1f} %")

# %%
figure, axes = plt.subplots(2, 6, figsize=(9, 3.6))
for axis, position in zip(axes.ravel(), np.random.default_rng(1).permutation(len(test)), strict=False):
    axis.imshow(Image.open(test.images([position])[0]))
    right = predicted[position] == test.labels[position]
    label = f"{test.class_names[predicted[position]]} {100 * probabilities[position].max():.0f} %"
    axis.set_title(label, fontsize=9, color="black" if right else "tab:red")
    axis.axis("off")
plt.show()

# %% [markdown]
# Which classes are confused? Rows are true classes, columns predicted ones.

# %%
counts = np.zeros((len(PARTS), len(PARTS)), int)
np.add.at(counts, (test.labels, predicted), 1)
print("  ".join(test.class_names))
print(counts)
