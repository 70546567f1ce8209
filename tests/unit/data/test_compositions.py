"""Pairs: lists, entanglement and feasibility against direct formulas; the layout of the published datasets."""

import itertools
import json
import pickle

import numpy as np
import pytest
from PIL import Image

from gram_jax.data import Compositions, balance, count_images, entanglement, feasibility, load_compositions
from gram_jax.data.glyphs import compositions as glyphs
from gram_jax.data.readers import czsl
from gram_jax.errors import InputError

SPLITS = ("train", "val", "test")


def test_candidates_follow_the_world():
    seen, val, test = (np.array(mask, bool) for mask in ([1, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1]))
    pairs = np.array([[0, 0], [0, 1], [1, 0], [1, 1]])
    found = Compositions(("wet", "dry"), ("dog", "cat"), pairs, seen, {"val": val, "test": test})
    assert found.names == ("wet dog", "wet cat", "dry dog", "dry cat")
    assert found.candidates("val").tolist() == [True, True, True, False]
    assert found.candidates("test").tolist() == [True, True, False, True]
    assert found.candidates("test", "open").all()
    some, places = found.only(found.candidates("test"))
    assert (some.names, places.tolist()) == (("wet dog", "wet cat", "dry cat"), [0, 1, -1, 2])


@pytest.mark.parametrize(
    ("pairs", "seen", "message"),
    [
        ([[0, 0], [0, 2]], [True, False], r"an object below 2"),
        ([[0, 0], [0, 0]], [True, False], "1 pairs are given twice"),
        ([[0, 0], [0, 1]], [True], r"expected bool\[2\]"),
        ([[0, 0], [0, 1]], [False, False], "no pair is seen"),
    ],
)
def test_wrong_lists_are_refused(pairs, seen, message):
    with pytest.raises(InputError, match=message):
        Compositions(("wet",), ("dog", "cat"), np.array(pairs), np.array(seen), {})


def test_entanglement_is_mutual_information_and_balance_undoes_it():
    counts = np.array([[6, 1, 0], [2, 3, 4]])
    joint = counts / counts.sum()
    p, q = joint.sum(1), joint.sum(0)
    information = sum(
        joint[a, o] * np.log(joint[a, o] / p[a] / q[o]) for a, o in itertools.product(range(2), range(3)) if joint[a, o]
    )
    found = entanglement(counts)
    assert found.shared == pytest.approx(information / min(-(p * np.log(p)).sum(), -(q * np.log(q)).sum()))
    assert p @ found.attributes == pytest.approx(information)
    assert q @ found.objects == pytest.approx(information)
    weights = balance(counts, 1.0)
    assert (weights * joint).sum() == pytest.approx(1)
    seen = joint > 0
    np.testing.assert_allclose((weights * joint)[seen], np.outer(p, q)[seen] / np.outer(p, q)[seen].sum())
    np.testing.assert_array_equal(balance(counts, 0.0), seen.astype(float))
    extreme = balance(np.array([[1000, 1], [1, 1]]), 1.0)
    assert extreme.max() / extreme.min() <= 25


def test_feasibility_equals_the_loop_of_its_formula():
    rng = np.random.default_rng(0)
    attributes, objects, seen = rng.normal(size=(4, 6)), rng.normal(size=(5, 6)), rng.random((4, 5)) < 0.4
    seen[0] = False  # an attribute without a seen pair

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    found = feasibility(attributes, objects, seen)
    for a, o in itertools.product(range(4), range(5)):
        by_object = max((cosine(objects[o], objects[n]) for n in range(5) if seen[a, n]), default=-1.0)
        by_attribute = max((cosine(attributes[a], attributes[n]) for n in range(4) if seen[n, o]), default=-1.0)
        assert found[a, o] == pytest.approx(1.0 if seen[a, o] else (by_object + by_attribute) / 2)


def test_glyph_pairs_are_a_function_of_the_seed_with_the_same_numbers():
    first, again, other = (load_compositions("glyphs:greek_small:faces", seed=seed) for seed in (0, 0, 1))
    assert first.dataset.content_hash == again.dataset.content_hash != other.dataset.content_hash
    counts = []
    for dataset, pairs in (first, other):
        seen, listed = pairs.seen, pairs.listed
        assert set(pairs.pairs[seen][:, 0]) == set(range(len(pairs.attributes)))
        assert set(pairs.pairs[seen][:, 1]) == set(range(len(pairs.objects)))
        assert not (listed["val"] & listed["test"]).any()
        counts.append([int(mask.sum()) for mask in (seen, *listed.values())])
        train = count_images(pairs, dataset.labels[dataset.select("train")])
        assert set(train[train > 0]) <= set(glyphs.TRAIN_SIZES)
        assert ((train > 0).ravel() == seen).all()
    assert counts[0] == counts[1]
    place = int(first.dataset.select("test")[7])
    assert first.dataset[place].shape == (32, 32, 3)
    assert entanglement(train).shared > 0.1
    with pytest.raises(InputError, match=r"'fonts'.*faces"):
        load_compositions("glyphs:greek_small:fonts")
    with pytest.raises(InputError, match=r"'glyph:greek_small'.*'glyphs'"):
        load_compositions("glyph:greek_small")


LISTS = {
    "train": ["Wet dog", "Wet Cat.Big", "dry dog"],
    "val": ["dry dog", "dry Cat.Big"],
    "test": ["Wet dog", "old dog"],
}


def write(root, rows, save):
    (root / czsl.SPLIT).mkdir(parents=True)
    for split, lines in LISTS.items():
        (root / czsl.SPLIT / f"{split}_pairs.txt").write_text("\n".join(lines) + "\n")
    for row in rows:
        path = root / "images" / row["image"]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), "red").save(path)
    save(rows, root)


def rows_of():
    rows = [
        {"image": f"{line.replace(' ', '_')}/{split}{number}.png", "attr": line.split()[0], "obj": line.split()[1]}
        | {"set": split}
        for split, lines in LISTS.items()
        for line in lines
        for number in range(2)
    ]
    rows.insert(3, {"image": "x/1.png", "attr": "NA", "obj": "dog", "set": "train"})
    rows.insert(5, {"image": "x/2.png", "attr": "Wet", "obj": "dog", "set": "NA"})
    rows.append({"image": "x/3.png", "attr": "old", "obj": "dog", "set": "train"})
    return rows


def save_json(rows, root):
    (root / f"metadata_{czsl.SPLIT}.json").write_text(json.dumps(rows))


def save_lines(rows, root):
    (root / f"metadata_{czsl.SPLIT}.jsonl").write_text("\n".join(map(json.dumps, rows)))


def save_old(rows, root):
    """The older layout of torch.save, as the published files have it."""
    parts = (
        0x1950A86A20F9469CFC6C,
        1001,
        {"protocol_version": 1001, "little_endian": True, "type_sizes": {}},
        rows,
        [],
    )
    content = b"".join(pickle.dumps(part, protocol=2) for part in parts)
    (root / f"metadata_{czsl.SPLIT}.t7").write_bytes(content)


@pytest.mark.parametrize("save", [save_json, save_lines, save_old])
def test_the_published_layout_is_read_and_left_out_rows_are_counted(save, tmp_path):
    root = tmp_path / "mit-states"
    write(root, rows_of(), save)
    dataset, pairs = load_compositions(f"czsl:{root}")
    assert (dataset.name, pairs.attributes, pairs.objects) == (
        "czsl:mit-states", ("wet", "dry", "old"), ("cat big", "dog")
    )  # fmt: skip
    assert pairs.names == ("wet cat big", "wet dog", "dry cat big", "dry dog", "old dog")
    assert pairs.seen.tolist() == [True, True, False, True, False]
    assert pairs.listed["test"].tolist() == [False, True, False, False, True]
    assert [int((dataset.splits == split).sum()) for split in SPLITS] == [6, 4, 4]
    assert dataset.read(dataset.references[0]).startswith(str(root / "images"))
    left = dataset.about["account"]["left_out"]
    assert {reason: each["count"] for reason, each in left.items()} == {
        "images without an attribute or a set": 2,
        "images whose pair is not in the list of their set": 1,
    }
    assert "3 attributes, 115 are published" in dataset.about["notes"]
    assert "1 unseen test pairs, 400 are published" in dataset.about["notes"]


def test_torch_writes_what_the_reader_reads(tmp_path):
    torch = pytest.importorskip("torch", reason="the format's own writer")
    for zipped, name in ((True, "a"), (False, "b")):
        root = tmp_path / name

        def save(rows, root, zipped=zipped):
            path = root / f"metadata_{czsl.SPLIT}.t7"
            torch.save(rows, path, _use_new_zipfile_serialization=zipped)

        write(root, rows_of(), save)
        assert len(load_compositions(f"czsl:{root}").dataset) == 14


def test_broken_folders_are_refused_by_name(tmp_path):
    root = tmp_path / "mine"
    write(root, rows_of(), lambda rows, root: None)
    with pytest.raises(InputError, match=r"metadata_compositional-split-natural\.t7"):
        load_compositions(f"czsl:{root}")
    (root / f"metadata_{czsl.SPLIT}.json").write_text('[{"image": "a.png", "attr": 3}]')
    with pytest.raises(InputError, match=r"entry 0, is \{'image': 'a.png', 'attr': 3\}"):
        load_compositions(f"czsl:{root}")
    path = root / f"metadata_{czsl.SPLIT}.t7"
    path.write_bytes(b"\x80\x02cos\nsystem\nq\x00.")
    with pytest.raises(InputError, match=r"os\.system"):
        load_compositions(f"czsl:{root}")
    path.unlink()
    save_json(rows_of(), root)
    (root / "images" / "Wet_dog" / "train0.png").unlink()
    with pytest.raises(InputError, match=r"1 of 14 images .*Wet_dog/train0\.png"):
        load_compositions(f"czsl:{root}")
    (root / czsl.SPLIT / "val_pairs.txt").write_text("one two three\n")
    with pytest.raises(InputError, match=r"line 1 is 'one two three'"):
        load_compositions(f"czsl:{root}")
