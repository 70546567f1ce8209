"""Episodes: few-shot tasks drawn from a hierarchy, each a pure function of a seed and its number."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from gram_jax.clip import Classes, Clip, encode_classes
from gram_jax.errors import InputError
from gram_jax.meta import Task
from gram_jax.tasks.hierarchy import Hierarchy, class_table

CROSS = ("class", "domain", "theme", "both")
_COMMON = 0.99  # share of the classes whose texts fit the default length


class Episode(NamedTuple):
    """One few-shot task; members are rows of the hierarchy's arrays.

    Attributes:
      classes: int64 `[ways]`, the classes of the support, in label order.
      support: int64 `[ways * shots]`, members, class after class.
      same: int64 `[ways * queries]`, other members of the same classes.
      cross_classes: int64 `[cross_ways]`, the classes of the query across a shift.
      cross: int64 `[cross_ways * cross_queries]`, its members.

    Example:
      >>> Episode(*map(np.array, ([0, 1], [3, 9], [4, 8], [2, 5], [6, 7]))).support.tolist()
      [3, 9]
    """

    classes: np.ndarray
    support: np.ndarray
    same: np.ndarray
    cross_classes: np.ndarray
    cross: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """Draws episodes; `make_episodes` makes it.

    Attributes:
      table: the tokens of all classes of the hierarchy, NumPy arrays; tails are `max_tokens` long.
      themes: the usable themes: usable classes of each, int64 arrays.
      left_out: how many classes are not used because their text is too long, and how many because they have too few
        members, by reason.
      settings: what `make_episodes` was called with, defaults filled in.

    Example:
      >>> from gram_jax.tasks import from_groups
      >>> from gram_jax.testing import tiny_clip
      >>> features = np.eye(16, dtype=np.float32)
      >>> h = from_groups(["pet"] * 16, ["cat", "dog", "bird", "fish"] * 4, features, features, min_members=4)
      >>> episodes = make_episodes(h, tiny_clip(), ways=2, shots=1, queries=1, cross_queries=1)
      >>> episode = episodes.draw(seed=0, index=7, progress=0.5)
      >>> h.classes[episode.support].tolist() == episode.classes.tolist()
      True
    """

    table: Classes
    themes: tuple[np.ndarray, ...]
    left_out: dict[str, int]
    settings: dict[str, Any]
    _text_ids: np.ndarray = dataclasses.field(repr=False)
    _rows: tuple[np.ndarray, ...] = dataclasses.field(repr=False)
    _domains: np.ndarray = dataclasses.field(repr=False)
    _features: np.ndarray = dataclasses.field(repr=False)
    _text_features: np.ndarray | None = dataclasses.field(repr=False)

    def draw(self, seed: int, index: int, progress: float = 1.0) -> Episode:
        """One episode; a pure function of its arguments.

        Args:
          seed: the seed of the run.
          index: the number of the episode, from 0.
          progress: how much of the training is done, from 0 to 1; the curriculum reads it.

        Returns:
          The `Episode`.

        Raises:
          InputError: if the progress is not between 0 and 1.
        """
        if not 0.0 <= progress <= 1.0:
            raise InputError(f"progress is {progress!r}; give the share of the training that is done, from 0 to 1.")
        rng = np.random.default_rng([seed, index])
        s = self.settings
        kind = s["cross"] if s["cross"] != "both" else ("domain", "theme")[index % 2]
        from_one = rng.random() < (progress / s["curriculum"] if s["curriculum"] else 1.0)
        first, second = self._draw_themes(rng)
        if from_one:
            pool = rng.permutation(self.themes[first])
        else:
            rest = [theme for number, theme in enumerate(self.themes) if kind != "theme" or number != second]
            pool = _by_turns(rng, rest)
        classes = self._pick(pool, s["ways"])
        if kind == "domain":
            cross_classes = classes
        elif kind == "theme":
            cross_classes = self._pick(rng.permutation(self.themes[second]), s["cross_ways"])
        else:
            cross_classes = self._pick(pool, s["cross_ways"], taken=classes)
        shots, queries, cross_queries = s["shots"], s["queries"], s["cross_queries"]
        if kind == "domain":
            drawn = np.stack([self._across_domains(rng, number) for number in classes])
            cross = drawn[:, shots + queries :]
        else:
            drawn = np.stack([rng.choice(self._rows[n], shots + queries, replace=False) for n in classes])
            cross = np.stack([rng.choice(self._rows[n], cross_queries, replace=False) for n in cross_classes])
        support, same = drawn[:, :shots], drawn[:, shots : shots + queries]
        return Episode(classes, support.ravel(), same.ravel(), cross_classes, cross.ravel())

    def batch(
        self,
        seed: int,
        index: int,
        count: int,
        progress: float,
        images: Callable[[np.ndarray], Any],
        rows: range | None = None,
    ) -> Task:
        """A meta batch: the episodes `index * count` to `index * count + count - 1`, stacked.

        Args:
          seed: the seed of the run.
          index: the number of the batch, from 0.
          count: tasks a batch.
          progress: as in `draw`.
          images: turns members int `[tasks, images]` into what the tuner takes, `[tasks, images, ...]`:
            `lambda rows: hierarchy.image_features[rows]`, or a function that reads pixels.
          rows: which of these episodes are drawn, those of one host; default all.

        Returns:
          A `Task` of batches {"classes": `Classes` `[tasks, ways, ...]`, "images", "labels": int32
          `[tasks, images]`}, and with the setting `context`, the tasks' contexts float32 `[tasks, 2 * embed_dim]`.
        """
        rows = range(count) if rows is None else rows
        drawn = [self.draw(seed, index * count + row, progress) for row in rows]
        stacked = Episode(*(np.stack(parts) for parts in zip(*drawn, strict=True)))

        def part(classes: np.ndarray, members: np.ndarray) -> dict[str, Any]:
            ways = classes.shape[1]
            labels = np.repeat(np.arange(ways, dtype=np.int32), members.shape[1] // ways)
            table = jax.tree.map(lambda array: array[classes], self.table)
            return {"classes": table, "images": images(members), "labels": np.tile(labels, (len(drawn), 1))}

        context = None
        if self.settings["context"]:
            means = self._features[stacked.support].mean(1), self._text_features[stacked.classes].mean(1)
            context = np.concatenate(means, axis=-1).astype(np.float32)
        return Task(
            support=part(stacked.classes, stacked.support),
            same=part(stacked.classes, stacked.same),
            cross=part(stacked.cross_classes, stacked.cross),
            context=context,
        )

    def prototypes(self) -> np.ndarray:
        """The context of each usable theme: its mean image feature and its mean class text, classes counting alike.

        Returns:
          float32 `[themes, 2 * embed_dim]`, what the contexts of a theme's tasks vary around; for
          `meta.with_structure`.

        Raises:
          InputError: if the episodes were made without `context`.
        """
        if self._text_features is None:
            raise InputError("these episodes have no contexts; make them with context=True.")

        def context(theme: np.ndarray) -> np.ndarray:
            image = np.mean([self._features[self._rows[number]].mean(0) for number in theme], axis=0)
            return np.concatenate([image, self._text_features[theme].mean(0)])

        return np.stack([context(theme) for theme in self.themes]).astype(np.float32)

    def _draw_themes(self, rng: np.random.Generator) -> tuple[int, int]:
        """Two themes, different ones where there are two; larger themes are drawn more often."""
        weights = np.sqrt([len(classes) for classes in self.themes])
        count = min(2, len(self.themes))
        drawn = rng.choice(len(self.themes), count, replace=False, p=weights / weights.sum())
        return int(drawn[0]), int(drawn[-1])

    def _pick(self, pool: np.ndarray, count: int, taken: np.ndarray | tuple[int, ...] = ()) -> np.ndarray:
        """The first classes of a pool whose texts differ from each other and from those of the taken ones."""
        pool = pool[~np.isin(self._text_ids[pool], self._text_ids[list(taken)])]
        first = np.unique(self._text_ids[pool], return_index=True)[1]
        return pool[np.sort(first)[:count]]

    def _across_domains(self, rng: np.random.Generator, number: int) -> np.ndarray:
        """Members of a class: support and queries of one visual domain, and then some of its other domains.

        Where no domain has members enough, any split of distinct members.
        """
        s = self.settings
        here, across = s["shots"] + s["queries"], s["cross_queries"]
        rows = rng.permutation(self._rows[number])
        sizes = np.bincount(self._domains[rows])
        possible = np.flatnonzero((sizes >= here) & (len(rows) - sizes >= across))
        if not len(possible):
            return rows[: here + across]
        inside = self._domains[rows] == rng.choice(possible)
        return np.concatenate([rows[inside][:here], rows[~inside][:across]])


def make_episodes(
    hierarchy: Hierarchy,
    clip: Clip,
    *,
    ways: int = 16,
    shots: int = 2,
    queries: int = 1,
    cross: str = "class",
    cross_queries: int = 2,
    cross_ways: int | None = None,
    max_tokens: int | None = None,
    curriculum: float = 0.0,
    context: bool = False,
) -> Episodes:
    """Makes the source of episodes of a hierarchy.

    A theme is drawn with a weight of the square root of its number of classes; its classes, and the members of a
    class, evenly. The texts of a class list differ, and no member occurs twice in an episode.

    Args:
      hierarchy: the hierarchy.
      clip: the clip, with its tokenizer; `centroid_clip(clip, hierarchy)` where classes are not called by words.
      ways: classes of a task.
      shots: support members of each class.
      queries: further members of each class, for the query like the support.
      cross: what the other query is drawn from: "class": other classes of the same theme; "domain": the same classes
        in other visual domains (of one domain are support and first query then, wherever it has members enough);
        "theme": classes of another theme; "both": domain in even episodes, theme in odd ones.
      cross_queries: members of each class of that query.
      cross_ways: classes of that query; default: as many as `ways`, which "domain" and "both" ask for.
      max_tokens: tokens of a class's text with the full stop and the end token; classes with longer texts are left
        out. Default: so many that 99 % of the classes stay.
      curriculum: share of the training along which the probability that the classes of an episode come from one theme
        grows linearly from 0 to 1; otherwise they come from as many themes as possible. 0: always from one theme.
      context: give tasks a context: the mean image feature of the support, and the mean text feature of its
        classes under "a photo of a {}.", as `task_context` makes it downstream.

    Returns:
      The `Episodes`.

    Raises:
      InputError: if a setting is out of range, or the hierarchy is too small for these tasks; the message says what
        would fit.

    Example:
      >>> from gram_jax.tasks import from_groups
      >>> from gram_jax.testing import tiny_clip
      >>> features = np.eye(16, dtype=np.float32)
      >>> h = from_groups(["pet"] * 16, ["cat", "dog", "bird", "fish"] * 4, features, features, min_members=4)
      >>> episodes = make_episodes(h, tiny_clip(), ways=2, shots=1, queries=1, cross_queries=1)
      >>> tasks = episodes.batch(0, index=3, count=5, progress=0.0, images=lambda rows: h.image_features[rows])
      >>> tasks.support["images"].shape, tasks.cross["labels"].shape
      ((5, 2, 16), (5, 2))

    Reference:
      "Gradient-Regulated Meta-Prompt Learning for Generalizable Vision-Language Models": tasks of clustered pairs,
      support and query from different domains. Kinds of shift, weights and curriculum are our own choice.
    """
    cross_ways = ways if cross_ways is None else cross_ways
    counts = {"ways": ways, "shots": shots, "queries": queries, "cross_queries": cross_queries}
    _check_settings(counts | {"cross_ways": cross_ways}, cross, curriculum)
    table, fits = _cut(class_table(hierarchy, clip), max_tokens, clip.config.text.context_length)
    text_ids = np.unique(table.tail_ids, axis=0, return_inverse=True)[1].reshape(-1)
    across = cross in ("domain", "both")
    needed = max(shots + queries + (cross_queries if across else 0), cross_queries)
    sizes = np.bincount(hierarchy.classes, minlength=len(hierarchy.texts))
    texts = ways + cross_ways if cross == "class" else max(ways, cross_ways)
    themes = _themes(hierarchy.themes, text_ids, fits & (sizes >= needed), texts)
    if len(themes) < (2 if cross in ("theme", "both") else 1):
        raise InputError(_too_small(hierarchy.themes, text_ids, fits, sizes, needed, texts, cross))
    order = np.argsort(hierarchy.classes, kind="stable")
    rows = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    return Episodes(
        table=table,
        themes=tuple(themes),
        left_out={"text too long": int(np.sum(~fits)), "too few members": int(np.sum(fits & (sizes < needed)))},
        settings=counts
        | {
            "cross": cross,
            "cross_ways": cross_ways,
            "max_tokens": table.tail_ids.shape[1],
            "curriculum": float(curriculum),
            "context": bool(context),
        },
        _text_ids=text_ids,
        _rows=rows,
        _domains=hierarchy.domains,
        _features=hierarchy.image_features,
        _text_features=np.asarray(encode_classes(clip, table)) if context else None,
    )


def _check_settings(counts: dict[str, int], cross: str, curriculum: float) -> None:
    for name, value in counts.items():
        least = 2 if name.endswith("ways") else 1
        try:
            good = not isinstance(value, bool) and operator.index(value) >= least
        except TypeError:
            good = False
        if not good:
            raise InputError(f"{name} is {value!r}; give a number of at least {least}.")
    if cross not in CROSS:
        raise InputError(f"cross is {cross!r}; choose one of {', '.join(map(repr, CROSS))}.")
    if cross in ("domain", "both") and counts["cross_ways"] != counts["ways"]:
        raise InputError(
            f"cross_ways is {counts['cross_ways']} and ways {counts['ways']}: with cross={cross!r} the classes are the "
            "same ones; leave cross_ways out."
        )
    if not 0.0 <= curriculum <= 1.0:
        raise InputError(f"curriculum is {curriculum!r}; give a share of the training, from 0 to 1.")


def _cut(table: Classes, max_tokens: int | None, limit: int) -> tuple[Classes, np.ndarray]:
    """The table with tails of one length, and which classes fit it."""
    lengths = np.asarray(table.tail_eot) + 1
    if max_tokens is None:
        max_tokens = int(np.quantile(lengths, _COMMON, method="higher"))
    fits = lengths <= max_tokens
    if not 2 <= max_tokens < limit or not fits.any():
        raise InputError(
            f"max_tokens is {max_tokens}; the texts of the classes have {lengths.min()} to {lengths.max()} tokens with "
            f"full stop and end, and the clip's context holds {limit} with the start."
        )

    def resize(array: np.ndarray, width: int) -> np.ndarray:
        filled = np.pad(array, ((0, 0), (0, max(0, width - array.shape[1]))), mode="edge")
        return filled[:, :width]

    # Behind an end-of-text token nothing matters, so the tails may be filled with whatever stands last.
    width = int(table.eot[fits].max()) + 1
    return table.replace(token_ids=resize(table.token_ids, width), tail_ids=resize(table.tail_ids, max_tokens)), fits


def _themes(themes: np.ndarray, text_ids: np.ndarray, usable: np.ndarray, texts: int) -> list[np.ndarray]:
    """The usable classes of each theme that has so many different texts among them."""
    found = [np.flatnonzero((themes == theme) & usable) for theme in range(themes.max() + 1)]
    return [classes for classes in found if len(np.unique(text_ids[classes])) >= texts]


def _too_small(
    themes: np.ndarray,
    text_ids: np.ndarray,
    fits: np.ndarray,
    sizes: np.ndarray,
    needed: int,
    texts: int,
    cross: str,
) -> str:
    wanted = 2 if cross in ("theme", "both") else 1

    def largest(members: int) -> int:
        """So many different texts do as many themes as are wanted have, in classes of so many members."""
        usable = fits & (sizes >= members)
        found = sorted(
            (len(np.unique(text_ids[(themes == theme) & usable])) for theme in np.unique(themes)), reverse=True
        )
        return found[wanted - 1] if len(found) >= wanted else 0

    have = largest(needed)
    what = "ways + cross_ways" if cross == "class" else "ways"
    least = 4 if cross == "class" else 2
    remedies = []
    if have >= least:
        remedies.append(f"with classes of {needed} members, {what} of up to {have} would fit")
    members = max((members for members in range(1, needed) if largest(members) >= texts), default=0)
    if members:
        remedies.append(f"with these ways, classes of {members} members would fit: fewer shots and queries")
    return (
        f"The tasks need {'two themes' if wanted == 2 else 'a theme'} of {texts} classes with different texts and at "
        f"least {needed} members each (cross={cross!r}); the hierarchy's "
        f"{'second richest' if wanted == 2 else 'richest'} theme has {have}, and the largest class {sizes.max()} "
        f"members. {'; '.join(remedies).capitalize() or 'Build the tasks from more pairs'}."
    )


def _by_turns(rng: np.random.Generator, themes: list[np.ndarray]) -> np.ndarray:
    """All classes in random order, a class of every theme before the second one of any."""
    turns = np.concatenate([rng.permutation(len(classes)) for classes in themes])
    return np.concatenate(themes)[np.lexsort((rng.random(len(turns)), turns))]
