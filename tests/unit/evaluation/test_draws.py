"""Few-shot draws and batches, against restatements of CoOp's code and of an epoch."""

import random
from collections import Counter, defaultdict

import numpy as np
import pytest

import gram_jax as gram
from gram_jax import evaluation
from gram_jax.data import Dataset
from gram_jax.evaluation import checks, protocols


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    labels = np.concatenate([rng.permutation(np.repeat(np.arange(4), 6)), np.repeat(np.arange(4), 2)]).astype(np.int32)
    splits = np.array(["train"] * 24 + ["test"] * 8)
    return Dataset("toy", tuple(range(32)), labels, splits, ("a", "b", "c", "d"), "{}.", str)


def coops_draw(dataset, shots, seed):
    """As in the public code: a dictionary of lists, filled in order, sampled with the one seeded generator."""
    random.seed(seed)
    tracker = defaultdict(list)
    for position, (label, split) in enumerate(zip(dataset.labels, dataset.splits, strict=True)):
        if split == "train":
            tracker[int(label)].append(position)
    drawn = []
    for items in tracker.values():
        drawn.extend(random.sample(items, shots))
    return drawn


@pytest.mark.parametrize("shots", [1, 4, 6])
def test_few_shot_is_coops_draw(dataset, shots):
    assert dataset.labels[0] != 0  # so that classes come in another order than their labels
    for seed in (1, 2, 3):
        drawn = evaluation.few_shot(dataset, shots, seed)
        assert drawn.dtype == np.int64
        assert drawn.tolist() == coops_draw(dataset, shots, seed)
        assert np.bincount(dataset.labels[drawn]).tolist() == [shots] * 4


@pytest.mark.parametrize("seed", [1, 2])
def test_of_small_classes_all_images_are_taken_as_dassl_does(seed):
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 2], [2, 7, 4]))
    dataset = Dataset("toy", tuple(range(13)), labels, np.array(["train"] * 13), ("a", "b", "c"), "{}", str)
    random.seed(seed)
    tracker, expected = defaultdict(list), []
    for position, label in enumerate(labels):
        tracker[int(label)].append(position)
    for items in tracker.values():  # generate_fewshot_dataset with repeat=False
        expected.extend(random.sample(items, 4) if len(items) >= 4 else items)
    assert evaluation.few_shot(dataset, 4, seed, take_all=True).tolist() == expected
    with pytest.raises(ValueError, match="class 'a' of 'toy' has 2 images"):
        evaluation.few_shot(dataset, 4, seed)
    assert protocols.few_shot.taking_all().draw(dataset, 4, seed).tolist() == expected
    assert checks.scarce(dataset, 4) == ["1 classes have fewer than 4 training images, all of which are taken: 'a'"]
    assert checks.scarce(dataset, 2) == []


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_val_is_drawn_after_train_from_the_same_generator(shots):
    rng = np.random.default_rng(1)
    counts = {"train": (6, 6, 6), "val": (5, 3, 7), "test": (1, 1, 1)}
    labels = [rng.permutation(np.repeat(np.arange(3), count)) for count in counts.values()]
    splits = np.concatenate([[split] * sum(count) for split, count in counts.items()])
    dataset = Dataset("toy", tuple(range(len(splits))), np.concatenate(labels), splits, ("a", "b", "c"), "{}.", str)
    for seed in (1, 2, 3):
        train, val = evaluation.few_shot_and_val(dataset, shots, seed)
        random.seed(seed)  # as in the public code: train first, then val, from one seeded generator
        expected = []
        for split, wanted in (("train", shots), ("val", min(shots, 4))):
            tracker, drawn = defaultdict(list), []
            for position in range(len(splits)):
                if splits[position] == split:
                    tracker[int(dataset.labels[position])].append(position)
            for items in tracker.values():
                drawn.extend(random.sample(items, wanted) if len(items) >= wanted else items)
            expected.append(drawn)
        assert [train.tolist(), val.tolist()] == expected
        assert train.tolist() == evaluation.few_shot(dataset, shots, seed).tolist()
        assert np.bincount(dataset.labels[val]).tolist() == [min(shots, 4, count) for count in counts["val"]]


@pytest.mark.parametrize("ratio", [1.0, 0.25, 0.06])
def test_long_tails_are_parts_of_the_few_shot_draw(dataset, ratio):
    order = [2, 0, 3]
    for seed in (1, 2):
        by_class = defaultdict(list)
        for position in coops_draw(dataset, 6, seed):
            by_class[int(dataset.labels[position])].append(position)
        wanted = {label: max(1, round(6 * ratio ** (k / 2))) for k, label in enumerate(order)}
        expected = [p for label, members in by_class.items() for p in members[: wanted.get(label, 0)]]
        assert evaluation.long_tail_draw(dataset, ratio, 6, seed, order).tolist() == expected
    assert evaluation.long_tail_draw(dataset, 1.0, 6, 1).tolist() == coops_draw(dataset, 6, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((0.5, 7, 1), "shots=7: .*has 6 images of split 'train'"),
        ((1.5, 4, 1), "1.5"),
        ((0.5, 4, 1, [0, 0]), r"labels \[0, 0\].* 4 classes of 'toy'"),
        ((0.5, 4, 1, [0, 4]), r"labels \[0, 4\].* 4 classes"),
    ],
)
def test_long_tails_refuse(dataset, settings, message):
    with pytest.raises(ValueError, match=message):
        evaluation.long_tail_draw(dataset, *settings)


def test_val_must_be_there(dataset):
    with pytest.raises(ValueError, match="'toy' has no images of split 'val'"):
        evaluation.few_shot_and_val(dataset, 1, 1)


def test_few_shot_leaves_the_global_generator_alone(dataset):
    random.seed(5)
    expected = random.random()
    random.seed(5)
    evaluation.few_shot(dataset, 2, 1)
    assert random.random() == expected


@pytest.mark.parametrize(
    ("shots", "split", "message"),
    [
        (7, "train", "shots=7: .*has 6 images of split 'train'.* 6"),
        (3, "test", "class 'a' of 'toy' has 2 images of split 'test'"),
        (0, "train", "shots=0"),
        (1, "val", "no images of split 'val'"),
    ],
)
def test_few_shot_refuses(dataset, shots, split, message):
    with pytest.raises(ValueError, match=message):
        evaluation.few_shot(dataset, shots, 1, split)


@pytest.mark.parametrize(("count", "batch_size", "steps"), [(7, 3, 14), (5, 5, 4), (4, 11, 6), (1, 3, 2), (6, 4, 0)])
def test_batches_are_epochs_one_after_the_other(count, batch_size, steps):
    found = gram.tuning.shuffled_batches(3, count, batch_size, steps)
    assert found.shape == (steps, batch_size)
    stream = found.ravel().tolist()
    for start in range(0, len(stream), count):
        epoch = stream[start : start + count]
        assert len(set(epoch)) == len(epoch)
    seen = Counter(dict.fromkeys(range(count), 0))
    seen.update(stream)
    assert set(seen) == set(range(count))
    assert max(seen.values()) - min(seen.values()) <= 1


def test_batches_depend_on_the_seed_alone_and_shorter_runs_are_beginnings():
    long = gram.tuning.shuffled_batches(1, 10, 4, 20)
    np.testing.assert_array_equal(gram.tuning.shuffled_batches(1, 10, 4, 7), long[:7])
    assert not np.array_equal(gram.tuning.shuffled_batches(2, 10, 4, 20), long)
    epochs = long.reshape(-1, 10)
    assert any(not np.array_equal(epoch, epochs[0]) for epoch in epochs)


def test_batches_refuse():
    with pytest.raises(ValueError, match="batch_size=0"):
        gram.tuning.shuffled_batches(0, 3, 0, 1)


@pytest.mark.parametrize(("count", "batch_size"), [(7, 3), (6, 3), (4, 9), (1, 1)])
def test_epochs_drop_their_rest_and_are_shuffled_anew(count, batch_size):
    epochs = 5
    found = gram.tuning.epoch_batches(2, count, batch_size, epochs)
    size = min(count, batch_size)
    assert found.shape == (epochs * (count // size), size)
    for epoch in np.split(found, epochs):
        assert len(set(epoch.ravel().tolist())) == epoch.size == count // size * size
    np.testing.assert_array_equal(gram.tuning.epoch_batches(2, count, batch_size, 2), found[: 2 * (count // size)])
    if count == 7:
        assert len({tuple(epoch.ravel()) for epoch in np.split(found, epochs)}) == epochs
        assert set(found.ravel().tolist()) == set(range(7))  # what is dropped is another image each time
    assert gram.tuning.epoch_batches(2, count, batch_size, 0).shape == (0, size)
    with pytest.raises(ValueError, match="batch_size=0"):
        gram.tuning.epoch_batches(2, 3, 0, 5)
