"""The usual spellings of splits and columns: one table for all readers, and the names that a clip cannot tell apart."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from gram_jax.clip.cleaning import repair
from gram_jax.errors import InputError, examples, nearest

# What a split is called, and the split it is. Upper case, separators and words such as "set" make no difference.
ROLES = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "dev", "development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
# What a column is called, the first spelling first. Upper case and separators make no difference.
COLUMNS = {
    "image": (
        "image", "path", "filepath", "filename", "imagepath", "file", "imagefile", "imagefilename", "imagename", "img",
        "imgpath", "photo", "picture",
    ),
    "label": ("label", "class", "category", "classname", "labelname", "categoryname", "labels", "target"),
    "split": ("split", "subset", "partition", "set", "fold", "phase"),
    "caption": ("caption", "captions", "text", "title", "description"),
}  # fmt: skip
_FILLERS = frozenset(
    ("set", "data", "dataset", "split", "image", "images", "img", "imgs", "photos", "pictures", "folder")
)
# Ids before the name (001.Albatross, [3] cat, class_07_dog) and behind it (cat_0, dog (1)).
_IDS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"(?P<id>n\d{8}|\d+)[\s._:,)-]+(?P<name>\S.*)",
        r"[(\[](?P<id>\d+)[)\]][\s._:-]*(?P<name>\S.*)",
        r"(?:class|cls|label|category|id|c)[\s._-]?(?P<id>\d+)[\s._:-]+(?P<name>\S.*)",
        r"(?P<name>.*[^\s\d._:#(\[-])[\s._:#-]+[(\[]?(?P<id>\d+)[)\]]?",
    )
)
WITHOUT_IDS = "numbers or WordNet ids beside the names of the classes are not part of the class names"
_MISSING = frozenset(("nan", "none", "null", "n/a", "na", "undefined", "#n/a"))
_JOINERS = "[\u200c\u200d]"
_SYNSET = re.compile(r"n\d{8}")


def role_of(name: str) -> str | None:
    """Returns the split ("train", "val" or "test") that a usual spelling means, or None.

    Example:
      >>> [role_of(name) for name in ("Training", "val", "test_set", "DEV", "train2017", "bullet train")]
      ['train', 'val', 'test', 'val', 'train', None]
    """
    words = _words(name)
    if words and re.fullmatch(r"\d{4}", words[-1]):  # a year
        words = words[:-1]
    kept = [word for word in words if word not in _FILLERS] or words
    joined = "".join(kept)
    if joined not in ROLES:
        joined = next((joined.removesuffix(each) for each in ("set", "data") if joined.endswith(each)), "")
    return ROLES.get(joined)


def says_nothing(name: str) -> bool:
    """Returns whether a folder's name tells only that images are in it.

    Example:
      >>> says_nothing("JPEGImages"), says_nothing("images"), says_nothing("dog")
      (True, True, False)
    """
    words = _words(name.replace("JPEG", "jpeg "))
    return bool(words) and {*_FILLERS, "jpeg", "jpg", "png", "rgb"}.issuperset(words)


def like_a_split(name: str) -> bool:
    """Returns whether a name contains the name of a split as a word, such as "seg_train"."""
    return any(word in ROLES for word in _words(name))


def _words(name: str) -> list[str]:
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return re.findall(r"[a-z]+|\d+", spaced.lower())


def column_key(name: str) -> str:
    """Returns the name of a column without upper case, spaces and separators.

    Example:
      >>> column_key(" File_Name"), column_key("class")
      ('filename', 'class')
    """
    return re.sub(r"[\s_.-]+", "", name.strip().removeprefix("\ufeff").strip().casefold())


def find_column(columns: Sequence[str], kind: str, given: str = "") -> int | None:
    """Returns the place of a column: of the given name, or of the first usual spelling of its kind; None if missing.

    Example:
      >>> find_column(["id", "File Name", "Class"], "image"), find_column(["id", "n"], "label")
      (1, None)
    """
    if given in columns and given:
        return columns.index(given)
    keys = [column_key(name) for name in columns]
    wanted = (column_key(given),) if given else COLUMNS[kind]
    return next((keys.index(key) for key in wanted if key in keys), None)


def missing_column(where: str, columns: Sequence[str], kind: str, flag: str = "") -> InputError:
    """Returns the error for a table or a dataset without a column of a kind."""
    hint = next((each for name in columns if (each := nearest(column_key(name), COLUMNS[kind]))), "")
    wanted = f"any of {', '.join(COLUMNS[kind])}{hint}"
    remedy = f"rename one, or name it with {flag}" if flag else "rename one"
    return InputError(f"{where} has the columns {', '.join(map(repr, columns)) or 'none'}, not {wanted}; {remedy}")


def class_key(name: str) -> str:
    """Returns a class name as a clip reads it: names with equal keys have the same tokens.

    Example:
      >>> class_key("Black_King") == class_key(" black  king") == class_key("black&nbsp;king")
      True
    """
    return " ".join(unicodedata.normalize("NFC", repair(name).replace("_", " ")).lower().split())


def equal_names(names: Iterable[str]) -> list[tuple[str, str]]:
    """Returns pairs of names that a clip cannot tell apart, each later name with the first one."""
    first: dict[str, str] = {}
    pairs = []
    for name in names:
        key = class_key(name)
        if key in first:
            pairs.append((first[key], name))
        first.setdefault(key, name)
    return pairs


def require_distinct(names: Iterable[str], what: str) -> None:
    """Raises InputError if a clip cannot tell some names apart, and lists the pairs."""
    if pairs := equal_names(names):
        shown = examples([f"{first} = {second}" for first, second in pairs])
        raise InputError(
            f"{what}: {len(pairs)} pairs of class names have the same tokens: {shown}; rename one of each, or make one "
            "class of them"
        )


class Merged(NamedTuple):
    """Spellings of classes: the name of each spelling, and notes."""

    name_of: dict[str, str]
    notes: list[str]


def merge_spellings(counts: Mapping[str, int]) -> Merged:
    """Makes one class of spellings that a clip cannot tell apart; the most frequent one, then the first, is its name.

    Args:
      counts: the number of images of each spelling.

    Example:
      >>> merge_spellings({"Cat": 3, "cat": 5, "dog": 1}).name_of
      {'Cat': 'cat', 'cat': 'cat', 'dog': 'dog'}
    """
    groups: dict[str, list[str]] = {}
    for name in sorted(counts):
        groups.setdefault(class_key(name), []).append(name)
    name_of: dict[str, str] = {}
    merged: list[str] = []
    for spellings in groups.values():
        chosen = max(spellings, key=lambda name: counts[name])
        name_of |= dict.fromkeys(spellings, chosen)
        merged += [f"{name} = {chosen}" for name in spellings if name != chosen]
    notes = [f"spellings that a clip cannot tell apart are one class: {examples(merged)}"] if merged else []
    return Merged({name: name_of[name] for name in counts}, notes)


def without_ids(names: Sequence[str]) -> tuple[list[str], bool]:
    """Removes class ids beside names, if all names have one; returns the names, and whether ids were removed.

    An id is a WordNet id, or a number of numbers that count from 0 or 1 or have leading zeros. It stands before the
    name, also in brackets or after a word such as "class", or behind it. Names that would be equal without their ids
    keep them.

    Example:
      >>> without_ids(["n01440764 tench", "n01443537_goldfish"])
      (['tench', 'goldfish'], True)
      >>> without_ids(["5 euro", "10 euro"]), without_ids(["001.Black_footed_Albatross", "002.Laysan_Albatross"])[0]
      ((['5 euro', '10 euro'], False), ['Black_footed_Albatross', 'Laysan_Albatross'])
    """
    for rest in _rests(names):
        if len({class_key(name) for name in rest}) == len(rest):
            return without_ids(rest)[0], True  # "1 001.Albatross" has two
    return list(names), False


def _rests(names: Sequence[str]) -> Iterator[list[str]]:
    """Yields what is left of the names without ids, if all of them have one; it may hold equal names."""
    for pattern in _IDS:
        matches = [match for name in names if (match := pattern.fullmatch(name.strip()))]
        if len(matches) < len(names) or len(names) < 2:
            continue
        ids, rest = [match["id"] for match in matches], [match["name"] for match in matches]
        lettered = all(any(letter.isalpha() for letter in name) for name in rest)
        if lettered and len(set(ids)) == len(ids) and (all(map(_SYNSET.fullmatch, ids)) or _counting(ids)):
            yield rest


def odd_names(names: Sequence[str]) -> list[str]:
    """Returns a note for everything about class names that a prompt should not say.

    Example:
      >>> odd_names(["cat", "nan"])
      ["class names that stand for missing values: 'nan'"]
    """
    notes = []
    if names and all(
        re.fullmatch(r"(class|cls|label|category|id|c)?[\s_-]*\d+(\.\d+)?", name, re.IGNORECASE) for name in names
    ):
        remedy = "name the classes, in classnames.txt beside the folders or in a column class_name of the table"
        notes.append(f"all class names are numbers; if they are ids, {remedy}")
    if missing := [name for name in names if name.strip().lower() in _MISSING]:
        notes.append(f"class names that stand for missing values: {examples(missing)}")
    if joined := _joined(names):
        notes.append(f"class names that join others, as several labels of one image do: {examples(joined)}")
    # Joiners are part of emoji, and of words in several scripts.
    hidden = [name for name in names if any(unicodedata.category(each) == "Cf" for each in re.sub(_JOINERS, "", name))]
    if hidden:
        notes.append(f"class names with invisible characters, which a clip reads: {examples(hidden)}")
    if not without_ids(names)[1] and (rest := next(_rests(names), None)):
        keys = list(map(class_key, rest))
        equal = [name for name, key in zip(names, keys, strict=True) if keys.count(key) > 1]
        notes.append(f"numbers beside class names are kept: without them, {examples(equal, 2)} would be one class")
    return notes


def _joined(names: Sequence[str]) -> list[str]:
    """Returns the names that consist of others, such as "cat;dog", and those that are lists, such as '["cat"]'."""
    keys = set(map(class_key, names))
    parts = {name: [each for each in re.split(r"[;|,/+&]", name) if each.strip()] for name in names}
    joined = [name for name in names if len(parts[name]) > 1 and keys.issuperset(map(class_key, parts[name]))]
    return joined + [name for name in names if re.fullmatch(r"\[.*\]|\{.*\}", name.strip())]


def _counting(ids: Collection[str]) -> bool:
    """Returns whether ids are numbers that count, or that are padded with zeros to one width."""
    if not all(map(str.isdecimal, ids)):
        return False
    numbers = sorted(map(int, ids))
    padded = len({len(each) for each in ids}) == 1 and any(each.startswith("0") and len(each) > 1 for each in ids)
    return padded or numbers in (list(range(len(ids))), list(range(1, len(ids) + 1)))


def are_ids(names: Collection[str]) -> bool:
    """Returns whether all names are numbers or WordNet ids."""
    return all(name.isdecimal() or _SYNSET.fullmatch(name) for name in names)


def require_names(names: Sequence[str], what: str) -> None:
    """Raises InputError if class names are WordNet ids, which say nothing to a clip."""
    if ids := [name for name in names if _SYNSET.fullmatch(name.strip())]:
        raise InputError(
            f"{what}: {len(ids)} class names are WordNet ids: {examples(ids)}; name them in a classnames.txt with "
            "lines such as 'n01440764 tench'"
        )
