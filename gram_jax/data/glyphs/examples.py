"""Labeled images of the glyph datasets, in any visual domain; each is a pure function of its number and the seed."""

from __future__ import annotations

import functools
import itertools
import os

import numpy as np

from gram_jax.data.content import content_of
from gram_jax.data.dataset import Dataset
from gram_jax.data.glyphs import faces
from gram_jax.data.glyphs.alphabet import characters, faces_of
from gram_jax.data.glyphs.appearance import RENDERINGS, UNSEEN_RENDERINGS, draw_appearance
from gram_jax.data.glyphs.datasets import GlyphDataset, catalog
from gram_jax.data.glyphs.drawing import render
from gram_jax.data.glyphs.pairs import corpus_faces
from gram_jax.data.streams import pick, stream
from gram_jax.errors import InputError

SPLIT_SIZES = {"train": 32, "val": 8, "test": 20}  # images of each class


def split_domain(dataset: GlyphDataset, domain: str) -> tuple[str, str]:
    """Splits the name of a domain into a face and a rendering.

    A domain is "" (corpus faces, print), a face ("serif-italic"), a rendering ("noise"), both ("serif-italic+noise"),
    or the path of a font file ("/path/to/any.ttf", "/path/to/any.ttf+noise"). The face "" means any corpus face.
    """
    face, rendering = "", "print"
    for part in filter(None, domain.split("+")):
        if part in RENDERINGS:
            rendering = part
        elif part in dataset.faces:
            face = part
        elif "/" in part:
            face = part
            _check_font(dataset, part)
        else:
            raise InputError(
                f"the glyph dataset {dataset.name!r} has no domain {part!r}; choose a face ({', '.join(dataset.faces)})"
                f", a rendering ({', '.join(RENDERINGS)}), face+rendering, or the path of a font file"
            )
    return face, rendering


def _check_font(dataset: GlyphDataset, path: str) -> None:
    wanted = frozenset(itertools.chain(*dataset.codes))
    drawn = faces.coverage(faces.font_path(faces.face_from_file(path)), wanted)
    missing = [name for name, codes in zip(dataset.class_names, dataset.codes, strict=True) if not drawn & set(codes)]
    if missing:
        raise faces.FontError(
            f"the font {path!r} lacks {len(missing)} of the {len(dataset.codes)} classes of {dataset.name!r} "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}); choose another font or dataset"
        )


def domain_name(domain: str) -> str:
    """Returns the name of a domain in results: a font file is named without its folder."""
    return "+".join(part.rpartition("/")[2] for part in domain.split("+"))


def unseen_domains(dataset: GlyphDataset) -> tuple[str, ...]:
    """Returns the domains that no corpus contains: unseen faces, then unseen renderings.

    Args:
      dataset: the dataset.
    """
    return (*(name for name in dataset.faces if not faces.FACES[name].in_corpus), *UNSEEN_RENDERINGS)


def example(dataset: GlyphDataset, domain: str, split: str, label: int, number: int, seed: int = 0) -> np.ndarray:
    """Returns one labeled image, uint8 `[32, 32, 3]`, a pure function of the arguments.

    Args:
      dataset, domain: the dataset; see `split_domain`.
      split: "train", "val" or "test"; each has its own random stream.
      label, number, seed: the class and the image within it, from 0; the seed of the dataset.
    """
    face, rendering = split_domain(dataset, domain)
    # Streams keep the name that the rendering "color" first had, so that images stay the same.
    domain = "+".join("colour" if part == "color" else part for part in domain_name(domain).split("+"))
    rng = stream(f"{dataset.name}/{domain}/{split}/{label}", seed, number)
    codes = dataset.codes[label]
    if face:
        known = face in faces.FACES
        drawn = frozenset() if known else faces.coverage(face, frozenset(codes))
        codes = tuple(code for code in codes if (face in faces_of(code) if known else code in drawn))
    character = characters()[pick(rng, codes)]
    drawn_by = pick(rng, (face,) if face else corpus_faces(character.code))
    return render(character, draw_appearance(rng, drawn_by, rendering))


def labeled(name: str, domain: str = "", seed: int = 0) -> Dataset:
    """Returns a labeled dataset in one visual domain; images are drawn when they are read.

    Args:
      name, seed: one of `datasets.NAMES`, and the seed of the images.
      domain: see `split_domain`; "": the corpus faces in plain print.

    Example:
      >>> chess = labeled("chess", "negative")
      >>> len(chess), chess.class_names[6], chess.images([0])[0].shape
      (720, 'black king', (32, 32, 3))
    """
    dataset = catalog(name)
    face, _ = split_domain(dataset, domain)
    labels = range(len(dataset.class_names))
    references = [(split, i, number) for split, size in SPLIT_SIZES.items() for i in labels for number in range(size)]
    named = domain_name(domain)
    return Dataset(
        name=f"glyphs:{name}" + (f"/{named}" if named else ""),
        references=tuple(references),
        labels=np.array([label for _, label, _ in references], np.int32),
        splits=np.array([split for split, _, _ in references]),
        class_names=dataset.class_names,
        template=dataset.template,
        read=functools.partial(_read, name, domain, seed),
        domain=named,
        seed=seed,
        content=None if not face or face in faces.FACES else functools.partial(_content, os.path.abspath(face)),
    )


def _read(name: str, domain: str, seed: int, place: tuple[str, int, int]) -> np.ndarray:
    return example(catalog(name), domain, *place, seed)


def _content(face: str, place: tuple[str, int, int]) -> str:
    del place  # all images are drawn with one font file
    return content_of("", False, face)
