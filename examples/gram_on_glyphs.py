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
# # GRAM on the glyph benchmark
#
# From unlabeled image-text pairs to a prompt initialization: cluster pairs into themes and classes, draw tasks from
# them, meta-learn, and tune on a dataset that none of this has seen. Everything is small here, for about a minute on a
# CPU; `python -m experiments.quickstart` does more, with all controls.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import gram_jax as gram

clip = gram.load_clip("mini")

# %% [markdown]
# ## The corpus: characters, drawn, with captions made from their Unicode names

# %%
corpus = gram.data.load_corpus("glyphs", pairs=4000)
figure, axes = plt.subplots(2, 6, figsize=(11, 4))
for axis, number in zip(axes.ravel(), range(0, 1200, 100), strict=True):
    axis.imshow(corpus.images([number])[0])
    words = corpus.captions[number].split()
    axis.set_title("\n".join(" ".join(words[begin : begin + 3]) for begin in range(0, len(words), 3)), fontsize=7)
    axis.axis("off")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Themes and classes, from captions and frozen features alone

# %%
image_features = gram.evaluation.image_features(clip, corpus.images(range(len(corpus))), 500)
tokens = clip.tokenizer.encode(corpus.captions, truncate=True)
text_features = np.concatenate([gram.encode_text(clip, tokens[begin : begin + 500]) for begin in range(0, 4000, 500)])
config = gram.tasks.ClusteringConfig(themes=30)
hierarchy = gram.tasks.build_hierarchy(corpus.captions, image_features, text_features, config)
print(f"{len(hierarchy.theme_texts)} themes, {len(hierarchy.texts)} classes, {len(hierarchy.members)} pairs kept")

largest = np.argsort(-np.bincount(hierarchy.themes))[:4]
figure, axes = plt.subplots(4, 6, figsize=(9, 6.4))
for row, theme in enumerate(largest):
    for axis, number in zip(axes[row], np.flatnonzero(hierarchy.themes == theme)[:6], strict=False):
        member = hierarchy.members[np.flatnonzero(hierarchy.classes == number)[0]]
        axis.imshow(corpus.images([int(member)])[0])
        axis.set_title(hierarchy.texts[number], fontsize=8)
    for axis in axes[row]:
        axis.axis("off")
    print(f"theme {hierarchy.theme_texts[theme]}")
plt.tight_layout()
plt.show()

# %% [markdown]
# ## Meta-learning: an initialization with an offset per theme, and a gradient regulator
#
# Each task has a support, a query of the same classes and a query of other classes of its theme. The inner loop takes
# three regulated steps on the support; the outer step improves the loss on both queries.

# %%
tuner = gram.tuners.coop(init_text="a photo of a")
regulator = gram.regulators.gated_low_rank(rank=4)
config = gram.tasks.EpisodeConfig(ways=6, cross_ways=3, max_tokens=8)
episodes = gram.tasks.make_episodes(hierarchy, clip, config, context=True)
prompt = tuner.init(jax.random.key(0), clip, None)
learned = gram.meta.init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.3)
learned = gram.meta.with_structure(learned, episodes.prototypes(), temperature=0.05)

STEPS, TASKS = 80, 4
rates = {"prompt": 2e-3, "offsets": 5e-3, "phi": 3e-4}
step = gram.make_meta_step(
    gram.tuning.classification_loss(tuner),
    regulator,
    optax.multi_transform({part: optax.adam(rate) for part, rate in rates.items()}, {part: part for part in rates}),
    steps=3,
    gradient="first_order",
    learn=tuple(rates),
    devices=jax.devices()[:1],
)
state, frozen = step.init(learned), step.place(clip.replace(transform=None))
history = []
for index in range(STEPS):
    tasks = episodes.batch(0, index, TASKS, 1.0, lambda rows: hierarchy.image_features[rows])
    state, metrics = step(state, frozen, jax.tree.map(jnp.asarray, tasks))
    history.append([float(np.mean(metrics[name])) for name in ("same", "cross")])
learned = jax.device_get(state.meta)

smooth = np.array(history).reshape(-1, 10, 2).mean(axis=1)
plt.figure(figsize=(5, 3))
plt.plot(np.arange(5, STEPS, 10), smooth, label=["query, same classes", "query, other classes"])
plt.xlabel("outer steps")
plt.ylabel("loss after adaptation")
plt.legend()
plt.show()

# %% [markdown]
# ## Downstream: a dataset that no step above has seen
#
# CoOp alone, GRAM, and its initialization without the regulator, on the same draws.

# %%
plan = gram.evaluation.TuningPlan(learning_rate=0.3, steps=30, report_steps=(1,))
rescaled = learned.replace(log_rates=jax.tree.map(lambda leaf: jnp.full_like(leaf, np.log(0.3)), learned.log_rates))
plain = rescaled.replace(phi=gram.regulators.identity().init(jax.random.key(0), prompt))  # without the regulator
methods = {
    "CoOp": gram.evaluation.prompt_method(tuner, plan),
    "CoOp + GRAM": gram.evaluation.prompt_method(tuner, plan, regulator=regulator, learned=rescaled),
    "initialization only": gram.evaluation.prompt_method(tuner, plan, learned=plain, name="coop+gram:init_only"),
}
encoder = gram.evaluation.Encoder(clip)  # encodes every image once, for all methods
scores = {}
for name, method in methods.items():
    rows = gram.evaluation.evaluate(encoder, method, "glyphs:georgian", "base_to_new", shots=4, seeds=(1, 2, 3))
    for at in (1, 30):
        base, new = ([row.value for row in rows if row.step == at and row.split == split] for split in ("base", "new"))
        scores[name, at] = 100 * gram.evaluation.harmonic_mean(base, new)
        print(f"{name}, {at:2d} steps: H {scores[name, at].mean():.1f} %")

# %%
figure, axis = plt.subplots(figsize=(6, 3.2))
for shift, name in enumerate(methods):
    values = np.array([scores[name, at] for at in (1, 30)])
    axis.bar(np.arange(2) + 0.27 * shift, values.mean(axis=1), 0.24, yerr=values.std(axis=1), label=name)
axis.set_xticks(np.arange(2) + 0.27, ["1 step", "30 steps"])
axis.set_ylabel("H of base and new classes, %")
axis.set_ylim(40, 100)
axis.legend(loc="lower right")
plt.show()

# %% [markdown]
# The initialization accounts for the gain; the regulator changes little here. Whether a difference of a point is more
# than noise takes more seeds and datasets: see the results page of the documentation.
