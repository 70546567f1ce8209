"""Readers of labeled datasets: split files, lists of class names, templates, tables of one's own."""

from __future__ import annotations

import json
import random

import numpy as np
from hypothesis import strategies as st

from gram_jax.clip.tokenizer import class_tokens
from gram_jax.data import load_dataset
from gram_jax.data.readers.coop_datasets import DATASETS
from gram_jax.data.readers.coop_rules import Source, aircraft, read_split_file
from gram_jax.testing import tiny_clip
from tests.system.fuzzing import altered, damaged, few, kept, many, tried
from tests.unit.data.pair_files import png

CLASSES = ("cat", "big_dog")
PATHS = [f"{name}/{number}.png" for name in CLASSES for number in range(5)]
SPLITS = {
    "train": [[path, label, name] for label, name in enumerate(CLASSES) for path in PATHS[5 * label : 5 * label + 3]],
    "val": [[PATHS[5 * label + 3], label, name] for label, name in enumerate(CLASSES)],
    "test": [[PATHS[5 * label + 4], label, name] for label, name in enumerate(CLASSES)],
}
CLIP = tiny_clip(text_layers=1, vision_layers=1)


def fill(folder) -> None:
    for path in PATHS:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(png(1))


def check(spec: str, names: str) -> None:
    """Opens a dataset, and does with it what a program does first."""
    dataset = tried(lambda: load_dataset(spec), ValueError, names=names)
    if dataset is not None:
        assert len(dataset.content_hash) == 64
        assert np.all(dataset.labels < len(dataset.class_names))
        "".join((*dataset.class_names, dataset.template)).encode()  # can be printed
        tried(lambda: class_tokens(CLIP.tokenizer, dataset.class_names, dataset.template), ValueError, names="")


def read_split(folder):
    source = Source(folder, "coop:dtd", random.Random(0))
    return read_split_file(source, DATASETS["dtd"].split_file, DATASETS["dtd"].base)


def in_json(document):
    return altered(document).map(lambda found: json.dumps(found).encode())


@few(content=st.one_of(in_json(SPLITS), damaged(json.dumps(SPLITS).encode()), st.binary(max_size=100)))
def test_split_files(content):
    entry = DATASETS["dtd"]
    with kept() as folder:
        path = folder / entry.folder / entry.split_file
        fill(folder / entry.folder / entry.base)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        tried(
            lambda: read_split(folder / entry.folder),
            ValueError,
            names=path.name,
        )
        check(f"coop:{folder}:dtd", "coop:dtd")


test_split_files_many = many(test_split_files)


@few(50, label=st.one_of(st.integers(2, 2**70), st.sampled_from([10**400, "7" * 5000, 2**31, 2**63, "٣"])))
def test_labels_of_any_size(label):
    entry = DATASETS["dtd"]
    with kept(8 << 20) as folder:
        splits = {**SPLITS, "test": [*SPLITS["test"], ["x.png", label, "far"]]}
        (folder / entry.split_file).write_text(json.dumps(splits))
        tried(lambda: read_split(folder), ValueError, names=entry.split_file)


NAMES_TXT = b"cat cat\nbig_dog\tbig dog\n"
NAMES_JSON = {"cat": "a cat", "big_dog": "a dog"}
TEMPLATE = b"a photo of a {}.\n"


@few(
    50,
    txt=st.one_of(st.none(), damaged(NAMES_TXT), st.text(max_size=40).map(str.encode)),
    names=st.one_of(st.none(), in_json(NAMES_JSON), damaged(json.dumps(NAMES_JSON).encode())),
    template=st.one_of(st.none(), damaged(TEMPLATE), st.just(b"{} and {}"), st.just(b"\xef\xbb\xbf{}")),
)
def test_names_and_templates_in_a_folder(txt, names, template):
    with kept() as folder:
        fill(folder)
        for file, content in (("classnames.txt", txt), ("classes.json", names), ("template.txt", template)):
            if content is not None:
                (folder / file).write_bytes(content)
        check(f"folder:{folder}", str(folder))


test_names_and_templates_in_a_folder_many = many(test_names_and_templates_in_a_folder)
TABLE = ("image,label,split\n" + "".join(f"{path},{path.partition('/')[0]},train\n" for path in PATHS)).encode()
CELLS = st.one_of(
    st.sampled_from(["cat/0.png", "cat", "train", "val", "", "\0", "a\0/b.png", "x" * 5000 + "/y", "/etc", ".."]),
    st.just("cat/0.png/below a file"),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=10),
)


@few(
    50,
    table=st.one_of(
        damaged(TABLE),
        st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=5).map(
            lambda rows: b"image,label,split\n" + "\n".join(",".join(row) for row in rows).encode()
        ),
    ),
)
def test_tables_of_images(table):
    with kept() as folder:
        fill(folder)
        (folder / "t.csv").write_bytes(table)
        check(f"csv:{folder}/t.csv", "t.csv")


test_tables_of_images_many = many(test_tables_of_images)


@few(variants=damaged(b"707\nA 380\n"), images=damaged(b"001 707\n002 A 380\n"))
def test_lists_of_aircraft(variants, images):
    with kept() as folder:
        (folder / "variants.txt").write_bytes(variants)
        for split in ("train", "val", "test"):
            (folder / f"images_variant_{split}.txt").write_bytes(images)
        tried(
            lambda: aircraft(Source(folder, "coop:fgvc_aircraft", random.Random(0))),
            ValueError,
            names="coop:fgvc_aircraft",
        )


test_lists_of_aircraft_many = many(test_lists_of_aircraft)


@few(100, texts=st.lists(st.text(st.characters(), max_size=20), max_size=4), truncate=st.booleans())
def test_any_text_is_encoded_or_named(texts, truncate):
    tokens = tried(lambda: CLIP.tokenizer.encode(texts, truncate=truncate), ValueError, names="text")
    if tokens is not None:
        assert tokens.shape[0] == len(texts)
        assert tokens.max() < CLIP.config.text.vocab_size
    tried(lambda: class_tokens(CLIP.tokenizer, texts), ValueError, names="class")


test_any_text_is_encoded_or_named_many = many(test_any_text_is_encoded_or_named)
