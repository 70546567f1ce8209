"""Episodes: few-shot tasks drawn from a hierarchy; each is a pure function of a seed and its number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gram_jax.batching import pad_to
from gram_jax.clip import Classes, Clip
from gram_jax.clip.classes import Layout, NameTokens, Tail, fit_rows, pack_classes, shared_rows, tails_of
from gram_jax.errors import InputError
from gram_jax.meta import Task
from gram_jax.tasks.config import EpisodeConfig
from gram_jax.tasks.hierarchy import Hierarchy, class_table, text_features
from gram_jax.tasks.pairs import draw_pairs, split_names

_COMMON = 0.99  # share of the classes whose texts fit the default length
_SAMPLE = 256  # episodes that tell how many rows the names of a task need
_TRIES = 100  # draws of pairs; a theme is usable if each of the first _CHECKED finds an episode
_CHECKED = 8


class Episode(NamedTuple):
    """One few-shot task; int64 arrays of classes, and of members sorted by class, rows of the hierarchy's arrays.

    Attributes:
      classes, support, same: `[ways]` in label order; `[ways * shots]`; `[ways * queries]`, others of these classes.
      cross_classes, cross: the query across a shift, `[cross_ways]` and `[cross_ways * cross_queries]`.
    """

    classes: np.ndarray
    support: np.ndarray
    same: np.ndarray
    cross_classes: np.ndarray
    cross: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """A source of episodes, made by `make_episodes`.

    Attributes:
      table: the tokens of all classes of the hierarchy; tails have the length `config.max_tokens`.
      themes, left_out: the usable classes of each usable theme, int64 arrays; the number of omitted classes by reason.
      config: the settings, with `max_tokens` filled in.
    """

    table: NameTokens
    themes: tuple[np.ndarray, ...]
    left_out: dict[str, int]
    config: EpisodeConfig
    _tails: list[Tail] = dataclasses.field(repr=False)
    _text_ids: np.ndarray = dataclasses.field(repr=False)
    _rows: tuple[np.ndarray, ...] = dataclasses.field(repr=False)
    _domains: np.ndarray = dataclasses.field(repr=False)
    _features: np.ndarray = dataclasses.field(repr=False)
    _text_features: np.ndarray | None = dataclasses.field(repr=False)
    _pairs: np.ndarray | None = dataclasses.field(repr=False)
    _layouts: tuple[tuple[int, int], ...] = dataclasses.field(repr=False, default=())

    def summary(self) -> str:
        """Returns the numbers of themes and classes that tasks are drawn from, and of classes that are left out."""
        left_out = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items() if count)
        about = f"tasks from {len(self.themes)} themes, {sum(map(len, self.themes))} classes"
        return about + (f"; left out: {left_out}" if left_out else "")

    def draw(self, seed: int, index: int, progress: float = 1.0) -> Episode:
        """Draws episode number `index`; `progress`, the finished share of the training, matters for the curriculum."""
        rng, config = np.random.default_rng([seed, index]), self.config
        queries, cross_queries = config.queries, config.cross_queries
        classes, cross_classes, shift = self._draw_classes(rng, index, progress)
        shots = _number_of_shots(rng, config.fewest, config.shots)
        if shift == "domain":
            drawn = [self._across_domains(rng, number, shots) for number in classes]
            cross = np.stack([members[-cross_queries:] for members in drawn])
            drawn = [members[:-cross_queries] for members in drawn]
        else:
            drawn = [self._together(rng, number, shots) for number in classes]
            cross = np.stack([rng.choice(self._rows[n], cross_queries, replace=False) for n in cross_classes])
        support = np.stack([np.resize(members[:-queries], config.shots) for members in drawn])
        same = np.stack([members[-queries:] for members in drawn])
        return Episode(classes, support.ravel(), same.ravel(), cross_classes, cross.ravel())

    def _draw_classes(
        self, rng: np.random.Generator, index: int, progress: float
    ) -> tuple[np.ndarray, np.ndarray, str]:
        """Draws the classes of an episode and those of its cross query, and returns the shift between them."""
        if not 0.0 <= progress <= 1.0:
            raise InputError(f"progress={progress!r}: it must be the finished share of the training, from 0 to 1")
        config = self.config
        shift = config.cross if config.cross != "both" else ("domain", "theme")[index % 2]
        if shift == "pairs":
            return (*self._draw_pairs(rng), shift)
        from_one = rng.random() < (progress / config.curriculum if config.curriculum else 1.0)
        first, second = self._draw_themes(rng)
        if from_one:
            pool = rng.permutation(self.themes[first])
        else:
            rest = [theme for number, theme in enumerate(self.themes) if shift != "theme" or number != second]
            pool = _by_turns(rng, rest)
        classes = self._pick(pool, config.ways)
        if shift == "domain":
            return classes, classes, shift
        if shift == "theme":
            pool = rng.permutation(self.themes[second])
        return classes, self._pick(pool, config.other_ways, taken=() if shift == "theme" else classes), shift

    def _draw_pairs(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Draws pairs to adapt to, and pairs of their attributes and objects for the cross query."""
        assert self._pairs is not None
        for _ in range(_TRIES):
            theme = self.themes[self._draw_themes(rng)[0]]
            drawn = draw_pairs(rng, theme, self._pairs, self.config.ways, self.config.other_ways)
            if drawn is not None:
                return drawn
        raise InputError(f"{_TRIES} draws found no other pairs of the same words; use fewer ways or cross_ways")

    def batch(
        self,
        seed: int,
        index: int,
        count: int,
        progress: float,
        images: Callable[[np.ndarray], Any],
        rows: range | None = None,
    ) -> Task:
        """Draws a meta batch: the episodes `index * count` to `index * count + count - 1`, stacked.

        Args:
          seed, index, count, progress: the seed of the run; the number of the batch, from 0; its tasks; see `draw`.
          images: maps members int `[tasks, images]` to the tuner's input `[tasks, images, ...]`:
            `lambda rows: hierarchy.image_features[rows]`, or a function that reads pixels.
          rows: the episodes of this host; default: all.

        Returns:
          A `Task` of batches {"classes": `Classes` `[tasks, ways, ...]`, "images", "labels": int32
          `[tasks, images]`}; if the episodes have contexts, also these, float32 `[tasks, 2 * embed_dim]`.
        """
        numbers = range(index * count, (index + 1) * count)
        drawn = [self.draw(seed, numbers[row], progress) for row in (range(count) if rows is None else rows)]
        stacked = Episode(*(np.stack(parts) for parts in zip(*drawn, strict=True)))
        # Of all hosts, whose trees of names must have the same number of rows.
        every = [self._draw_classes(np.random.default_rng([seed, number]), number, progress) for number in numbers]
        own = self._pack(0, stacked.classes, every)
        cross = self._pack(1, stacked.cross_classes, every)

        def part(classes: Classes, members: np.ndarray) -> dict[str, Any]:
            ways = classes.eot.shape[1]
            labels = np.repeat(np.arange(ways, dtype=np.int32), members.shape[1] // ways)
            return {"classes": classes, "images": images(members), "labels": np.tile(labels, (len(drawn), 1))}

        context = None
        if self._text_features is not None:
            means = self._features[stacked.support].mean(1), self._text_features[stacked.classes].mean(1)
            context = np.concatenate(means, axis=-1).astype(np.float32)
        return Task(
            support=part(own, stacked.support),
            same=part(own, stacked.same),
            cross=part(cross, stacked.cross),
            context=context,
        )

    def _fit_layouts(self) -> tuple[tuple[int, int], ...]:
        """Returns lengths and numbers of rows: of the trees of an episode's names, and of those of its cross query."""
        shares = np.linspace(0, 1, _SAMPLE)
        drawn: list[Any] = [self._draw_classes(np.random.default_rng(n), n, share) for n, share in enumerate(shares)]
        return tuple(fit_rows([[self._tails[number] for number in each[part]] for each in drawn]) for part in (0, 1))

    def _pack(self, part: int, classes: np.ndarray, every: Sequence[Any]) -> Classes:
        """Returns the names of classes `[tasks, ways]`; the trees of all tasks, on all hosts, have one number of rows.

        It is that of the layout, so that a step compiles once, unless a task of this batch needs more.
        """
        length, rows = self._layouts[part]
        rows = max(rows, *(len(shared_rows([self._tails[number] for number in each[part]], length)) for each in every))
        layout = Layout(length, rows, least=self.table.tail_ids.shape[1])
        names = [NameTokens(*(array[own] for array in self.table)) for own in classes]
        packed = [pack_classes(*each, layout=layout) for each in names]
        return jax.tree.map(lambda *arrays: np.stack(arrays), *packed)

    def prototypes(self) -> np.ndarray:
        """Returns the context of each usable theme, the mean over its classes, float32 `[themes, 2 * embed_dim]`."""
        if self._text_features is None:
            raise InputError("the episodes have no contexts; call make_episodes with context=True")
        image = [np.mean([self._features[self._rows[n]].mean(0) for n in theme], axis=0) for theme in self.themes]
        text = [self._text_features[theme].mean(0) for theme in self.themes]
        return np.concatenate([image, text], axis=1).astype(np.float32)

    def _draw_themes(self, rng: np.random.Generator) -> tuple[int, int]:
        """Draws two themes, different if possible, with the square roots of their sizes as weights."""
        weights = np.sqrt([len(classes) for classes in self.themes])
        drawn = rng.choice(len(weights), min(2, len(weights)), replace=False, p=weights / weights.sum())
        return int(drawn[0]), int(drawn[-1])

    def _pick(self, pool: np.ndarray, count: int, taken: np.ndarray | tuple[int, ...] = ()) -> np.ndarray:
        """Returns the first classes of a pool with texts that differ from each other and from the taken ones."""
        pool = pool[~np.isin(self._text_ids[pool], self._text_ids[list(taken)])]
        return pool[np.sort(np.unique(self._text_ids[pool], return_index=True)[1])[:count]]

    def _together(self, rng: np.random.Generator, number: int, shots: int) -> np.ndarray:
        """Draws the support members of a class, fewer if it is small, then those of its query."""
        rows, queries = self._rows[number], self.config.queries
        return rng.choice(rows, min(shots + queries, len(rows)), replace=False)

    def _across_domains(self, rng: np.random.Generator, number: int, shots: int) -> np.ndarray:
        """Draws members of a class from one visual domain, then from others; from any if no domain has enough."""
        across = self.config.cross_queries
        rows = rng.permutation(self._rows[number])
        here = min(shots + self.config.queries, len(rows) - across)
        sizes = np.bincount(self._domains[rows])
        possible = np.flatnonzero((sizes >= here) & (len(rows) - sizes >= across))
        if not len(possible):
            return rows[: here + across]
        inside = self._domains[rows] == rng.choice(possible)
        return np.concatenate([rows[inside][:here], rows[~inside][:across]])


def _number_of_shots(rng: np.random.Generator, fewest: int, most: int) -> int:
    """Draws a number of shots, every doubling with the same probability."""
    if fewest == most:
        return most
    return int(fewest * (most / fewest) ** rng.random() + 0.5)


def make_episodes(
    hierarchy: Hierarchy, clip: Clip, config: EpisodeConfig | None = None, *, context: bool = False
) -> Episodes:
    """Returns the source of episodes of a hierarchy.

    Themes are drawn with the square root of their number of classes as the weight; classes of a theme and members of a
    class evenly. The texts of a class list differ, and no member occurs twice in an episode.

    Args:
      hierarchy, config: the hierarchy, and the settings; default: `EpisodeConfig()`.
      clip: the clip, with its tokenizer; `centroid_clip(clip, hierarchy)` if token embeddings name the classes.
      context: give tasks their context, see `gram_jax.meta.task_context`.

    Example:
      >>> from gram_jax.tasks import from_groups
      >>> from gram_jax.testing import tiny_clip
      >>> features = np.eye(24, 16, dtype=np.float32)
      >>> h = from_groups(["pet"] * 24, ["cat", "dog", "bird", "fish"] * 6, features, features)
      >>> episodes = make_episodes(h, tiny_clip(), EpisodeConfig(ways=2, shots=1))
      >>> tasks = episodes.batch(0, index=3, count=5, progress=0.0, images=lambda rows: h.image_features[rows])
      >>> tasks.support["images"].shape, tasks.cross["labels"].shape
      ((5, 2, 16), (5, 4))

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models": tasks of clustered pairs,
      support and query from different domains.
    """
    config = config or EpisodeConfig()
    table, fits = _cut(class_table(hierarchy, clip), config.max_tokens, clip.config.text.context_length)
    text_ids = np.unique(table.tail_ids, axis=0, return_inverse=True)[1].reshape(-1)
    sizes = np.bincount(hierarchy.classes, minlength=len(hierarchy.texts))
    enough = sizes >= config.members
    alike = _most_alike(hierarchy, config.cohesive)
    usable = fits & enough & alike
    by_theme = (np.flatnonzero((hierarchy.themes == theme) & usable) for theme in np.unique(hierarchy.themes))
    themes = [classes for classes in by_theme if len(np.unique(text_ids[classes])) >= config.texts]
    pairs = split_names(hierarchy.texts) if config.cross == "pairs" else None
    if pairs is not None:
        themes = [theme for theme in themes if _has_pairs(theme, pairs, config)]
    if len(themes) < config.themes:
        raise InputError(_too_small(hierarchy.themes, text_ids, fits & alike, sizes, config))
    texts = hierarchy.text_features if context else None
    episodes = Episodes(
        table=table,
        themes=tuple(themes),
        left_out={
            "text too long": int(np.sum(~fits)),
            "too few members": int(np.sum(fits & ~enough)),
            "not cohesive": int(np.sum(fits & enough & ~alike)),
        },
        config=dataclasses.replace(config, max_tokens=table.tail_ids.shape[1]),
        _tails=tails_of(table.tail_ids, table.tail_eot),
        _text_ids=text_ids,
        _rows=hierarchy.members_of_classes,
        _domains=hierarchy.domains,
        _features=hierarchy.image_features,
        _text_features=text_features(hierarchy, clip) if context and texts is None else texts,
        _pairs=pairs,
    )
    return dataclasses.replace(episodes, _layouts=episodes._fit_layouts())


def cohesion(hierarchy: Hierarchy) -> np.ndarray:
    """Returns how much the members of each class look alike, the mean cosine of the image features of two of them.

        (|sum_i f_i|^2 - n) / (n (n - 1))        for the n members of a class; 0 for n = 1

    Classes that clustering mixed from several things have a small cohesion, so that `EpisodeConfig.cohesive` leaves
    most of the wrong labels out.

    Args:
      hierarchy: the classes and the image features of their members.

    Returns:
      float64 `[classes]`, from -1 to 1.
    """
    rows = hierarchy.members_of_classes
    count = np.array([len(own) for own in rows], np.float64)
    total = np.array([hierarchy.image_features[own].sum(0, dtype=np.float64) for own in rows])
    return (np.sum(total**2, axis=1) - count) / np.maximum(count * (count - 1), 1)


def _most_alike(hierarchy: Hierarchy, share: float) -> np.ndarray:
    """Returns whether each class belongs to the given share of its theme with the largest cohesion."""
    alike = np.ones(len(hierarchy.texts), bool)
    if share == 1:
        return alike
    values = cohesion(hierarchy)
    for theme in np.unique(hierarchy.themes):
        own = hierarchy.themes == theme
        alike[own] = values[own] >= np.quantile(values[own], 1 - share)
    return alike


def _has_pairs(theme: np.ndarray, pairs: np.ndarray, config: EpisodeConfig) -> bool:
    """Returns whether the pairs of a theme make episodes."""
    draws = (
        draw_pairs(np.random.default_rng(n), theme, pairs, config.ways, config.other_ways) for n in range(_CHECKED)
    )
    return all(drawn is not None for drawn in draws)


def _cut(table: NameTokens, max_tokens: int | None, limit: int) -> tuple[NameTokens, np.ndarray]:
    """Returns the table with tails of one length, and the classes that fit."""
    lengths, longest = table.tail_eot + 1, table.eot
    if max_tokens is None:
        max_tokens = int(np.quantile(lengths, _COMMON, method="higher"))
    fits = lengths <= max_tokens
    if not 2 <= max_tokens < limit or not fits.any():
        raise InputError(
            f"max_tokens={max_tokens}: the class texts have {lengths.min()} to {lengths.max()} tokens, the context of "
            f"the clip {limit}"
        )

    def resize(ids: Any, width: int) -> Any:
        return pad_to(ids[:, :width], len(ids), width)  # tokens after the end-of-text token do not matter

    token_ids, tail_ids = resize(table.token_ids, int(longest[fits].max()) + 1), resize(table.tail_ids, max_tokens)
    return table._replace(token_ids=token_ids, tail_ids=tail_ids), fits


def _too_small(
    themes: np.ndarray, text_ids: np.ndarray, fits: np.ndarray, sizes: np.ndarray, config: EpisodeConfig
) -> str:
    """Returns the message for a hierarchy without a suitable theme, with sizes that would fit."""

    def richest(members: int) -> int:
        """Returns the number of different texts that `config.themes` themes have, in classes of this size."""
        usable = fits & (sizes >= members)
        counts = sorted(len(np.unique(text_ids[(themes == theme) & usable])) for theme in np.unique(themes))
        return counts[-config.themes] if len(counts) >= config.themes else 0

    available = richest(config.members)
    name, least = ("ways + cross_ways", 4) if config.cross in ("class", "pairs") else ("ways", 2)
    remedies = [f"use {name} of at most {available}"] if available >= least else []
    members = max((members for members in range(1, config.members) if richest(members) >= config.texts), default=0)
    if members:
        remedies.append(f"use fewer shots and queries, for classes of {members} members")
    return (
        f"cross={config.cross!r} needs themes={config.themes} with {config.texts} different texts in classes of "
        f"{config.members} members; the hierarchy has {available} such texts, and its largest class {sizes.max()} "
        f"members; {', or '.join(remedies) or 'build the tasks from more pairs'}"
    )


def _by_turns(rng: np.random.Generator, themes: list[np.ndarray]) -> np.ndarray:
    """Returns all classes in random order, the first class of every theme before the second of any."""
    turns = np.concatenate([rng.permutation(len(classes)) for classes in themes])
    return np.concatenate(themes)[np.lexsort((rng.random(len(turns)), turns))]
