"""Stored predictions, read back with NumPy alone."""

import json

import numpy as np
import pytest

from gram_jax.data import Dataset
from gram_jax.errors import InputError
from gram_jax.evaluation import Part, Predictions
from gram_jax.evaluation.stored import read_predictions, save_predictions


def part(split, references, labels, names=("cat", "dog")):
    labels = np.array(labels, np.int32)
    return Part(split, None, Dataset("toy", tuple(references), labels, np.full(len(labels), "test"), names, "{}", str))


def test_the_second_of_two_runs(tmp_path):
    path = tmp_path / "unit.npz"
    names = ("cat \ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "<dog>")
    parts = [part("base", ["a.jpg", "b.jpg"], [0, 1], names), part("new", [[0, 1], [0, 2]], [1, 1])]
    predicted = Predictions(np.array([[0, 0], [1, 1]]), np.array([[0.5, 0.75], [0.25, 1.0]]))
    save_predictions(path, zip(parts, [predicted, None], strict=True), run=1, seed=7)
    (stored,) = read_predictions(path)
    assert (stored.split, stored.domain, stored.seed, stored.class_names) == ("base", None, 7, names)
    assert stored.accuracy == 0.5
    with np.load(path) as arrays:
        assert arrays["0/predicted"].tolist() == [1, 1]
        assert arrays["0/probability"].tolist() == [0.25, 1.0]
        assert [json.loads(each) for each in arrays["0/references"]] == ["a.jpg", "b.jpg"]


def test_a_thousand_images_take_few_bytes_and_the_same_bytes(tmp_path):
    rng, count = np.random.default_rng(0), 5000
    files = [f"class_{i % 50:02}/image_{i:06}.jpg" for i in range(count)]
    parts = [part("all", files, np.arange(count) % 2)]
    predicted = Predictions(rng.integers(0, 2, (1, count)), rng.uniform(size=(1, count)))
    for name in ("a.npz", "b.npz"):
        save_predictions(tmp_path / name, zip(parts, [predicted], strict=True))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert (tmp_path / "a.npz").stat().st_size < 12 * count


@pytest.mark.parametrize(
    "change",
    [
        {"0/predicted": np.array([0, 2])},
        {"0/predicted": np.array([0])},
        {"0/labels": np.array([0.0, 1.0])},
        {"0/references": np.array([1, 2])},
        {"header": np.frombuffer(b"[{}]", np.uint8)},
        {"header": np.frombuffer(b"no json", np.uint8)},
    ],
)
def test_a_damaged_file_is_named(tmp_path, change):
    path = tmp_path / "unit.npz"
    predicted = Predictions(np.array([[0, 0]]), np.array([[0.5, 0.75]]))
    save_predictions(path, [(part("all", ["a", "b"], [0, 1]), predicted)])
    with np.load(path) as arrays:
        content = dict(arrays)
    np.savez(path, **(content | change))
    with pytest.raises(InputError, match=r"unit\.npz .*--save_predictions"):
        read_predictions(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=r"unit\.npz"):
        read_predictions(path)
