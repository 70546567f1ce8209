"""Writes docs/results/tokens.csv: the tokens that the class names of the published datasets need.

The tokens of some of them become experiments/benchmark/name_tokens.json, for experiments.benchmark.names.

    pip install --no-deps open-clip-torch tensorflow-datasets
    python docs/tokens.py

The vocabulary and ImageNet's names are read from open_clip's files, the names of other datasets from those of
tensorflow-datasets, written as CoOp writes them; neither package is imported. A row counts the tokens behind a learned
context: name, full stop, end.
"""

from __future__ import annotations

import ast
import csv
import gzip
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from gram_jax.clip.classes import tails_of
from gram_jax.clip.tokenizer import Tokenizer, class_tokens
from gram_jax.data.readers import coop_datasets

FILE = Path(__file__).parent / "results" / "tokens.csv"
NAMES = Path(__file__).parents[1] / "experiments" / "benchmark" / "name_tokens.json"
LISTS = ("imagenet", "stanford_cars", "sun397", "food101", "fgvc_aircraft")
HEADER = ["dataset", "classes", "longest name", "longest tail", "mean tail", "tokens", "distinct prefixes"]
AIRCRAFT = """707-320|727-200|737-200|737-300|737-400|737-500|737-600|737-700|737-800|737-900|747-100|747-200|747-300|
747-400|757-200|757-300|767-200|767-300|767-400|777-200|777-300|A300B4|A310|A318|A319|A320|A321|A330-200|A330-300|
A340-200|A340-300|A340-500|A340-600|A380|ATR-42|ATR-72|An-12|BAE 146-200|BAE 146-300|BAE-125|Beechcraft 1900|Boeing 717|
C-130|C-47|CRJ-200|CRJ-700|CRJ-900|Cessna 172|Cessna 208|Cessna 525|Cessna 560|Challenger 600|DC-10|DC-3|DC-6|DC-8|
DC-9-30|DH-82|DHC-1|DHC-6|DHC-8-100|DHC-8-300|DR-400|Dornier 328|E-170|E-190|E-195|EMB-120|ERJ 135|ERJ 145|
Embraer Legacy 600|Eurofighter Typhoon|F-16A/B|F/A-18|Falcon 2000|Falcon 900|Fokker 100|Fokker 50|Fokker 70|
Global Express|Gulfstream IV|Gulfstream V|Hawk T1|Il-76|L-1011|MD-11|MD-80|MD-87|MD-90|Metroliner|Model B200|PA-28|
SR-20|Saab 2000|Saab 340|Spitfire|Tornado|Tu-134|Tu-154|Yak-42"""


def package(name: str) -> Path:
    """Returns the folder of an installed package without importing it."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {name} is not installed", name=name)
    return Path(spec.submodule_search_locations[0])


def openai_tokenizer(context_length: int = 77) -> Tokenizer:
    """Returns CLIP's tokenizer with OpenAI's 49,408 tokens, from open_clip's copy of the merges."""
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    text = gzip.decompress((package("open_clip") / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode()
    merges = [tuple(line.split()) for line in text.split("\n")[1 : 49152 - 256 - 2 + 1]]
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(map(chr, printable)))
    alphabet = [*map(chr, printable), *others]
    tokens = [*alphabet, *(f"{each}</w>" for each in alphabet), *map("".join, merges)]
    vocab = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    hf: Any = CLIPTokenizer(vocab=vocab, merges=merges)
    return Tokenizer(hf, context_length)


def class_names() -> dict[str, list[str]]:
    """Returns the class names of the published datasets as CoOp writes them."""
    tfds = package("tensorflow_datasets")

    def lines(file: str) -> list[str]:
        return (tfds / file).read_text(encoding="utf-8").split("\n")[:-1]

    def constant(file: Path, name: str) -> list[str]:
        body = ast.parse(file.read_text(encoding="utf-8")).body
        values = {node.targets[0].id: node.value for node in body if isinstance(node, ast.Assign)}
        return list(ast.literal_eval(values[name]))

    images = "image_classification"
    cars = (name.rpartition(" ") for name in constant(tfds / images / "cars196.py", "_NAMES"))
    flowers = tfds / "datasets" / "oxford_flowers102" / "oxford_flowers102_dataset_builder.py"
    pets = tfds / "datasets" / "oxford_iiit_pet" / "oxford_iiit_pet_dataset_builder.py"
    renamed = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike"}
    renamed |= {name.lower(): new for name, new in renamed.items()} | {"airplanes": "airplane"}
    caltech = [
        name for name in lines(f"{images}/caltech101_labels.txt") if name not in ("background_google", "faces_easy")
    ]
    return {
        "imagenet": constant(package("open_clip") / "zero_shot_metadata.py", "IMAGENET_CLASSNAMES"),
        "caltech101": [renamed.get(name, name) for name in caltech],
        "oxford_pets": [name.lower() for name in constant(pets, "_LABEL_CLASSES")],
        "stanford_cars": [f"{year} {model}" for model, _, year in cars],
        "oxford_flowers": constant(flowers, "_NAMES"),
        "food101": lines(f"{images}/food-101_classes.txt"),
        "fgvc_aircraft": AIRCRAFT.replace("\n", "").split("|"),
        "sun397": [" ".join(reversed(line.split("/")[2:])) for line in lines(f"{images}/sun397_labels.txt")],
        "dtd": lines(f"{images}/dtd_key_attributes.txt"),
        "eurosat": list(coop_datasets._EUROSAT_NAMES.values()),
        "ucf101": ["_".join(re.findall("[A-Z][^A-Z]*", name)) for name in lines("video/ucf101_labels.txt")],
    }


def row(tokenizer: Tokenizer, dataset: str, names: list[str]) -> list[str]:
    """Returns a line of the table."""
    classes = class_tokens(tokenizer, names, allow_duplicates=True)
    tails = [ids[: end + 1] for ids, end in zip(classes.tail_ids.tolist(), classes.tail_eot.tolist(), strict=True)]
    counts = [len(tail) for tail in tails]
    prefixes = {tuple(tail[:length]) for tail in tails for length in range(1, len(tail) + 1)}
    longest = names[counts.index(max(counts))].replace("_", " ")
    mean = f"{sum(counts) / len(counts):.1f}"
    return [dataset, str(len(names)), longest, str(max(counts)), mean, str(sum(counts)), str(len(prefixes))]


def main() -> None:
    """Writes the table."""
    tokenizer, lists = openai_tokenizer(), class_names()
    tails = {name: class_tokens(tokenizer, lists[name], allow_duplicates=True) for name in LISTS}
    rows = {name: tails_of(classes.tail_ids, classes.tail_eot) for name, classes in tails.items()}
    without_ends = {name: [tail[:-1] for tail in own] for name, own in rows.items()}
    NAMES.write_text(json.dumps(without_ends, separators=(",", ":")) + "\n", encoding="utf-8")
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(HEADER)
        writer.writerows(row(tokenizer, name, names) for name, names in lists.items())


if __name__ == "__main__":
    main()
