"""Pairs in tar archives in the layout of webdataset and img2dataset; nothing is extracted."""

from __future__ import annotations

import functools
import glob
import itertools
import lzma
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gram_jax.data.pairs import base
from gram_jax.data.pairs.base import Pair, Reading, Skipped
from gram_jax.data.pairs.tar import Member, members, open_archive
from gram_jax.data.readers.files import SUFFIXES, absent
from gram_jax.errors import examples

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_TEXTS = (".txt", ".json")
_PENDING = 64  # images of one key that wait for their text


def plan(source: str, pattern: str, reading: Reading) -> Iterator[dict[str, Any]]:
    """Yields one unit per archive, in the order of the pattern."""
    paths = []
    for name in expand_braces(os.path.expanduser(pattern)):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]
        if not matches:
            raise FileNotFoundError(f"no archive matches {name!r}; check the path")
        paths.extend(matches)
    if len(paths) == 1 and os.path.exists(paths[0]) and not os.path.isfile(paths[0]):
        raise FileNotFoundError(absent(Path(paths[0]), "file"))
    if missing := [path for path in paths if not os.path.isfile(path)]:
        hint = "; download them, URLs and pipes are not read" if re.match(r"\w+:", missing[0]) else ""
        raise FileNotFoundError(f"{len(missing)} of {len(paths)} archives are missing: {examples(missing)}{hint}")
    shared = {"kind": source, "key": reading.caption_column, "max_bytes": reading.max_bytes}
    shared["image"] = reading.image_column
    yield from ({**shared, **base.file_state(path)} for path in paths)


def expand_braces(pattern: str) -> list[str]:
    """Returns the texts to which a shell expands braces: "{00..02}" counts, "{a,b}" lists, several multiply.

    Example:
      >>> expand_braces("{train,val}/{008..010}.tar")[2:4]
      ['train/010.tar', 'val/008.tar']
    """
    pieces = _BRACES.split(pattern)
    choices = [[piece] if even % 2 == 0 else _choices(piece) for even, piece in enumerate(pieces)]
    return ["".join(parts) for parts in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    if match := _RANGE.fullmatch(inside):
        first, last = (int(end) for end in match.groups())
        step = 1 if first <= last else -1
        # As in a shell, numbers have the same width if an end has leading zeros.
        padded = any(len(end) > 1 and end.startswith("0") for end in match.groups())
        width = max(map(len, match.groups())) if padded else 0
        return [str(number).zfill(width) for number in range(first, last + step, step)]
    return inside.split(",") if "," in inside else ["{" + inside + "}"]


def read(unit: dict[str, Any]) -> Iterator[Pair | Skipped]:
    """Yields the pairs of an archive; the members of a sample are adjacent, as in webdataset.

    The key of a sample is the path up to the first dot of the file name, the suffix is the rest. An image and a text
    whose suffixes differ in their last part only ("0.jpg" and "0.txt", or "shop.item0.jpg" and "shop.item0.txt") are a
    pair. A damaged archive gives the pairs before the damage.
    """
    path = base.check_state(unit)
    last, damage, sample = "its begin", None, Sample(path.name, "", unit)
    seen: set[int] = set()  # hashes of names
    try:
        for name, content in _contents(str(path), path.name, unit["max_bytes"]):
            last = name
            if isinstance(content, Skipped) and content.reason == base.UNUSED:
                yield content
                continue
            key, suffix = split_name(name)
            if key != sample.key:
                yield from sample.finish()
                sample = Sample(path.name, key, unit)
            if hash(name) in seen:
                yield Skipped(f"{path.name}/{name}", base.REPEATED, "the archive holds another member of this name")
                continue
            seen.add(hash(name))
            yield from sample.put(name, suffix, content)
    except (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if getattr(error, "errno", None) is not None:  # an error of the disk, not of a decompressor
            raise
        damage = Skipped(path.name, base.DAMAGED, f"it cannot be read after {last} ({error}); download it again")
    yield from (each for each in sample.finish() if damage is None or isinstance(each, Pair))
    if damage is not None:
        yield damage


def split_name(name: str) -> tuple[str, str]:
    """Returns the key of a sample and the suffix in lower case, as webdataset divides a name.

    Example:
      >>> split_name("v1.0/0001.left.JPG"), split_name("README")
      (('v1.0/0001', 'left.jpg'), ('README', ''))
    """
    folder, _, file = name.rpartition("/")
    stem, _, suffix = file.partition(".")
    return f"{folder}/{stem}" if folder else stem, suffix.lower()


class Sample:
    """The members of one key, paired by their stems: what precedes the last part of their suffixes.

    A stem with one image and a text is a pair. A text without a stem ("0.txt") also belongs to the only other image
    ("0.photo.jpg"). Several images for one text are ambiguous, unless the unit names the suffix of the image.
    """

    def __init__(self, archive: str, key: str, unit: dict[str, Any]):
        self.archive, self.key = archive, key
        self._json_key, self._wanted = unit["key"], unit.get("image", "").lstrip(".").lower()
        self._images: dict[str, list[_Member]] = {}
        self._texts: dict[str, dict[str, _Member]] = {}
        self._complete = False  # the stem "" is paired: other members are additions

    def put(self, name: str, suffix: str, content: bytes | Skipped) -> Iterator[Pair | Skipped]:
        """Adds a member; yields what need not wait for further members, so that memory does not grow."""
        stem, _, kind = suffix.rpartition(".")
        if f".{kind}" not in SUFFIXES:
            self._texts.setdefault(stem, {})[f".{kind}"] = _Member(name, content)
        elif self._wanted and suffix != self._wanted:
            yield self._unused(name, "images of other suffixes")
        else:
            self._images.setdefault(stem, []).append(_Member(name, content))
        ready = [each for each in self._images if each not in ("", stem) and each in self._texts]
        for each in ready:
            yield from self._pair(each, each)
        if len(self._images) > _PENDING:
            lost = self._images.pop(next(iter(self._images)))
            yield from (base.make_pair(self._name(each.name), each.content, None) for each in lost)

    def finish(self) -> Iterator[Pair | Skipped]:
        """Yields what remains: pairs, ambiguous samples, images without a text, and texts without an image."""
        for stem in [each for each in self._images if each in self._texts]:
            yield from self._pair(stem, stem)
        if "" in self._texts and self._images:
            stem, *more = self._images
            for other in more:
                self._images[stem] += self._images.pop(other)
            yield from self._pair(stem, "")
        for member in itertools.chain(*self._images.values()):
            yield self._left(member, base.make_pair(self._name(member.name), member.content, None))
        for kind, member in itertools.chain(*(each.items() for each in self._texts.values())):
            caption = self._caption({kind: member}, self._name(member.name))
            yield self._left(member, base.make_pair(self._name(self.key), None, caption))

    def _pair(self, image_stem: str, text_stem: str) -> Iterator[Pair | Skipped]:
        """Yields the pair of an image and a text, which are removed."""
        images, texts = self._images.pop(image_stem), self._texts.pop(text_stem)
        name = self._name(images[0].name)
        self._complete = self._complete or not text_stem
        if len(images) > 1:
            suffixes = [split_name(each.name)[1] for each in images]
            remedy = f"choose one with image_column, such as image_column={suffixes[0]}"
            yield Skipped(name, base.AMBIGUOUS, f"it has the images {', '.join(suffixes)}; {remedy}")
            return
        yield base.make_pair(name, images[0].content, self._caption(texts, name))
        if len(texts) > 1:
            yield self._unused(texts[".json"].name, ".json members beside a .txt")

    def _caption(self, texts: dict[str, _Member], name: str) -> bytes | str | Skipped:
        content = texts[".txt" if ".txt" in texts else ".json"].content
        if ".txt" in texts or isinstance(content, Skipped):
            return content
        return base.caption_from_json(name, content, self._json_key)

    def _left(self, member: _Member, problem: Pair | Skipped) -> Pair | Skipped:
        """Returns what a member that is in no pair counts as: an addition to a complete sample, or its problem."""
        return self._unused(member.name, "members beside a complete sample") if self._complete else problem

    def _unused(self, name: str, reason: str) -> Skipped:
        return Skipped(self._name(name), base.UNUSED, reason)

    def _name(self, name: str) -> str:
        return f"{self.archive}/{name}"


class _Member(NamedTuple):
    name: str
    content: bytes | Skipped


def _contents(path: str, archive: str, max_bytes: int) -> Iterator[tuple[str, bytes | Skipped]]:
    """Yields the names and contents of the images and texts of an archive, and what else it holds as not used."""
    with open_archive(path) as file:
        for member in members(file):
            if member.is_folder:
                continue
            name = f"{archive}/{member.name}"
            suffix = os.path.splitext(member.name)[1].lower()
            if os.path.basename(member.name).startswith("."):
                yield member.name, Skipped(name, base.UNUSED, "hidden members")
            elif suffix not in SUFFIXES and suffix not in _TEXTS:
                kind = f"{suffix} members" if suffix else "members without a suffix"
                yield member.name, Skipped(name, base.UNUSED, kind)
            else:
                problem = _problem(member, max_bytes if suffix in SUFFIXES else base.MAX_TEXT_BYTES)
                yield member.name, Skipped(name, base.REFUSED, problem) if problem else member.read()
        if any(chunk.strip(b"\0") for chunk in iter(functools.partial(file.read, 1 << 16), b"")):
            yield archive, Skipped(archive, base.UNUSED, "archives with more behind their end, as joined ones have")


def _problem(member: Member, limit: int) -> str:
    if not member.is_file:
        return "a link or a special file"
    if member.name.startswith(("/", "\\")) or ".." in re.split(r"[/\\]", member.name):
        return "its name leads out of the archive"
    return f"{member.size} bytes, the limit is {limit}" if member.size > limit else ""
