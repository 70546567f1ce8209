"""experiments.predict against direct computation, and its errors for broken input."""

import csv
import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from etils import epath
from PIL import Image

import gram_jax as gram
from experiments import predict
from gram_jax import meta, regulators, tuners
from gram_jax.array_file import write_arrays
from gram_jax.evaluation import scoring
from gram_jax.testing import tiny_clip
from tests.unit.data import layouts

NAMES = ("cat", 'green, "large" frog', "dog")
FILES = ["a.png", "b.JPG", "c/d.png", "c/e.bmp", "z.png"]
ALL = [*FILES[:4], "notes.txt", "z.png"]  # files that are no images have a row, too
TEMPLATE = "a drawing of a {}."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A clip, images in two folders, and things among them that are no images."""
    folder = tmp_path_factory.mktemp("predict")
    gram.save_clip(tiny_clip(), folder / "clip")
    rng = np.random.default_rng(0)
    (folder / "images" / "c").mkdir(parents=True)
    for name in FILES:
        Image.fromarray(rng.integers(0, 256, (14, 17, 3), np.uint8)).save(folder / "images" / name)
    (folder / "images" / "notes.txt").write_text("no image")
    (folder / "images" / ".hidden.png").write_text("no image")
    (folder / "images" / "c" / "back").symlink_to(folder / "images")
    return folder


@pytest.fixture(scope="module")
def clip(folder):
    return gram.load_clip(folder / "clip")


def configure(folder, **settings):
    defaults = {"images": str(folder / "images"), "classes": NAMES, "clip": str(folder / "clip"), "batch_size": 2}
    return predict.Config(**defaults | settings)


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def check(lines, images, texts, clip):
    """Compares a table with the softmax of scaled cosines, image by image."""
    assert [line["file"] for line in lines] == ALL
    assert [line["error"] for line in lines if line["file"] == "notes.txt"] == [
        "notes.txt is not read: files that are no images"
    ]
    lines = [line for line in lines if line["file"] != "notes.txt"]
    scale = np.exp(float(clip.params["logit_scale"]))
    for line, image in zip(lines, np.asarray(images, np.float64), strict=True):
        scores = np.exp(scale * (np.asarray(texts, np.float64) @ image))
        probabilities = {name: score / scores.sum() for name, score in zip(NAMES, scores, strict=True)}
        best = sorted(NAMES, key=lambda name: -probabilities[name])
        assert [line["predicted"], line["top_1"], line["top_2"], line["top_3"]] == [best[0], *best]
        found = [float(line[column]) for column in ("probability", "probability_1", "probability_2", "probability_3")]
        np.testing.assert_allclose(found, [probabilities[name] for name in [best[0], *best]], atol=2e-5)
        assert line["error"] == ""


def pixels(folder, clip):
    return clip.preprocess([folder / "images" / name for name in FILES])


def test_zero_shot(folder, clip, tmp_path, capsys):
    predict.run(configure(folder, template=TEMPLATE, top=9), epath.Path(tmp_path))  # there are three classes
    texts = [gram.encode_text(clip, clip.tokenize([TEMPLATE.replace("{}", name)]))[0] for name in NAMES]
    lines = table(tmp_path / "predictions.csv")
    check(lines, gram.encode_image(clip, pixels(folder, clip)), texts, clip)
    assert list(lines[0])[-2:] == ["probability_3", "error"]
    said = capsys.readouterr().out
    assert "5 images classified, 1 broken" in said
    assert "left out: 1 files that are no images ('notes.txt')" in said
    account = json.loads((tmp_path / "account.json").read_text())
    assert account["read"] == {"images": 5, "files": 6}
    assert {reason: each["count"] for reason, each in account["left_out"].items()} == {
        "hidden files and folders": 1, "links to folders": 1, "files that are no images": 1
    }  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["account.json", "predictions.csv"]


@pytest.mark.parametrize("kind", ["prompt", "meta"])
def test_text_prompt_of_a_prompt_file_or_a_meta_checkpoint(folder, clip, tmp_path, kind):
    tuner, path, output = tuners.coop(num_tokens=3), tmp_path / "p.safetensors", tmp_path / "new" / "table.csv"
    prompt = jax.tree.map(lambda leaf: 20 * leaf, tuner.init(jax.random.key(1), clip, None))
    if kind == "prompt":
        gram.save_prompt(path, prompt, tuner, clip)
    else:
        regulator = regulators.affine()
        start = meta.init_meta(prompt, regulator.init(jax.random.key(2), prompt), learning_rate=0.1)
        gram.save_meta(path, start, tuner, regulator, clip)
    predict.run(configure(folder, prompt=str(path), output=str(output)), epath.Path(tmp_path))
    texts = gram.encode_classes(clip, clip.class_tokens(NAMES), gram.TextPrompt(prompt["context"]))
    check(table(output), gram.encode_image(clip, pixels(folder, clip)), texts, clip)


@pytest.mark.parametrize("name", ["vpt", "ivlp"])
def test_visual_prompts(folder, clip, tmp_path, name):
    tuner = {"vpt": tuners.vpt(num_tokens=2), "ivlp": tuners.ivlp(depth=1, num_visual=2)}[name]
    prompt = jax.tree.map(lambda leaf: 20 * leaf, tuner.init(jax.random.key(1), clip, None))
    gram.save_prompt(tmp_path / "p.safetensors", prompt, tuner, clip)
    template = TEMPLATE if name == "vpt" else None
    config = configure(folder, prompt=str(tmp_path / "p.safetensors"), template=template)
    predict.run(config, epath.Path(tmp_path))
    tokens, text = (prompt["tokens"], None) if name == "vpt" else (prompt["visual"]["tokens"], prompt["text"])
    classes = clip.class_tokens(NAMES, TEMPLATE)
    texts = gram.encode_classes(clip, classes, None if text is None else gram.TextPrompt(text["context"]))
    images = gram.encode_image(clip, pixels(folder, clip), gram.VisualPrompt(tokens))
    check(table(tmp_path / "predictions.csv"), images, texts, clip)


def test_texts_that_depend_on_the_image(clip):
    def apply(prompt, clip, classes, images):
        image = gram.encode_image(clip, images)
        text = prompt["mix"] * image[:, None] + classes[None]
        return tuners.Outputs(gram.logits(image, text, 0.0), image, text)

    tuner = tuners.Tuner("mixed", {}, None, apply, True, False)
    classes = np.eye(clip.config.embed_dim, dtype=np.float32)[:3]
    images = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    found = scoring.with_classes(tuner, {"mix": 0.5}, clip, NAMES, classes)(images)
    features = np.asarray(gram.encode_image(clip, images))
    scores = np.stack([[f @ (0.5 * f + k) for k in classes] for f in features])
    np.testing.assert_allclose(found, np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True), rtol=1e-4)


@pytest.fixture
def damaged(tmp_path):
    """A folder in which the first and the last of four images are broken, in two ways."""
    images = tmp_path / "images"
    images.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)
    for name in ("b.png", "c.png"):
        Image.fromarray(noise).save(images / name)
    (images / "a.png").write_bytes(b"nonsense")
    (images / "d.png").write_bytes((images / "b.png").read_bytes()[:120])
    return images


@pytest.mark.parametrize("batch_size", [1, 3])
def test_broken_images_are_listed_and_named(folder, damaged, tmp_path, caplog, capsys, batch_size):
    predict.run(configure(folder, images=str(damaged), batch_size=batch_size, top=1), epath.Path(tmp_path))
    lines = table(tmp_path / "predictions.csv")
    assert [(line["file"], bool(line["predicted"])) for line in lines] == [
        ("a.png", False), ("b.png", True), ("c.png", True), ("d.png", False)
    ]  # fmt: skip
    assert lines[0]["error"].startswith("a.png is no image of a known format")
    assert lines[3]["error"].startswith("d.png cannot be read")
    assert [lines[0][column] for column in ("probability", "top_1", "probability_1")] == ["", "", ""]
    assert list(lines[0]) == ["file", "predicted", "probability", "top_1", "probability_1", "error"]
    assert lines[1]["probability"] == lines[2]["probability"]  # equal images, whatever their batch holds
    assert "2 of 4 images cannot be read, see the column error: a.png, d.png" in caplog.text
    assert "2 images classified, 2 broken" in capsys.readouterr().out


def test_only_broken_images_is_an_error(folder, damaged, tmp_path):
    for name in ("b.png", "c.png"):
        (damaged / name).unlink()
    with pytest.raises(ValueError, match=r"none of 2 images .*d\.png"):
        predict.run(configure(folder, images=str(damaged)), epath.Path(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_an_interrupted_run_leaves_the_older_table(folder, tmp_path, monkeypatch):
    (tmp_path / "predictions.csv").write_text("older")
    calls = []

    def classify(pixels):
        calls.append(len(pixels))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return np.full((len(pixels), len(NAMES)), 1 / 3)

    monkeypatch.setattr(predict, "make_classifier", lambda *arguments: classify)
    with pytest.raises(KeyboardInterrupt):
        predict.run(configure(folder), epath.Path(tmp_path))
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("predictions.csv", "older")]


def test_images_are_read_batch_by_batch(folder, clip, monkeypatch):
    read, original = [], predict._read
    monkeypatch.setattr(predict, "_read", lambda given, *rest: read.append(given.name) or original(given, *rest))
    shapes = []

    def classify(pixels):
        shapes.append(pixels.shape)
        return np.full((len(pixels), 3), 1 / 3)

    found = predict.predict(predict.given_files(str(folder / "images")), clip, classify, 2)
    next(found)
    assert read == ["a.png", "b.JPG"]
    assert len(list(found)) == 5
    assert shapes == 3 * [(2, 12, 12, 3)]  # the last batch is padded: one compiled step


def test_class_names_of_a_file(folder, tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("\ufeffcat\r\n\r\n café, large \n".encode())
    assert predict.class_names(configure(folder, classes=(), classes_file=str(file))) == ["cat", "café, large"]
    file.write_bytes(b"cat\n\xff\xfe\n")
    with pytest.raises(ValueError, match=r"--classes_file=.*names\.txt"):
        predict.class_names(configure(folder, classes=(), classes_file=str(file)))


def test_class_names_of_a_dataset(folder, tmp_path):
    root = layouts.write_folder(tmp_path / "labeled", ["n02", "n01"])
    (root / "classnames.txt").write_text("n01 great_white shark\nn02 tench\n")
    of_folder = configure(folder, classes=(), classes_from=f"folder:{root}")
    assert predict.class_names(of_folder) == ["great white shark", "tench"]
    (root / "classnames.txt").write_text("n01 tench\nn02 tench\n")
    with pytest.raises(ValueError, match=r"classnames\.txt.*'tench = tench'"):
        predict.class_names(of_folder)
    with pytest.raises(ValueError, match=r"there is no folder /nowhere"):
        predict.class_names(configure(folder, classes=(), classes_from="folder:/nowhere"))


def save_foreign(path, clip):
    other = tiny_clip(seed=5)
    gram.save_prompt(path, tuners.coop().init(jax.random.key(0), other, None), tuners.coop(), other)


def save_class_specific(path, clip):
    tuner = tuners.coop(class_specific=True)
    prompt = tuner.init(jax.random.key(0), clip, clip.class_tokens(["cat", "dog"]))
    gram.save_prompt(path, prompt, tuner, clip)


def save_coop(path, clip):
    gram.save_prompt(path, tuners.coop().init(jax.random.key(0), clip, None), tuners.coop(), clip)


def save_long(path, clip):
    tuner = tuners.coop(num_tokens=20)
    gram.save_prompt(path, tuner.init(jax.random.key(0), clip, None), tuner, clip)


def save_other_kind(path, clip):
    write_arrays(path, {"x": np.zeros(1)}, {"kind": "features"})


def save_nonsense(path, clip):
    path.write_bytes(b"nonsense")


@pytest.mark.parametrize(
    ("save", "settings", "message"),
    [
        (save_foreign, {}, r"p\.safetensors.*other weights"),
        (save_class_specific, {}, r"p\.safetensors .* 2 classes, but 3"),
        (save_coop, {"template": TEMPLATE}, "template=.*coop"),
        (save_long, {}, "context length"),
        (save_other_kind, {}, "'features'"),
        (save_nonsense, {}, r"p\.safetensors"),
    ],
)
def test_prompts_that_do_not_fit_are_refused_before_work(folder, clip, tmp_path, monkeypatch, save, settings, message):
    monkeypatch.setattr(predict, "_read", None)  # no image may be read
    path = tmp_path / "p.safetensors"
    save(path, clip)
    with pytest.raises(ValueError, match=message):
        predict.run(configure(folder, prompt=str(path), **settings), epath.Path(tmp_path))
    assert not list(tmp_path.glob("*.csv*"))


def test_a_class_specific_prompt_of_as_many_classes(clip, tmp_path):
    save_class_specific(tmp_path / "p.safetensors", clip)
    scorer = predict.make_classifier(clip, ["cat", "dog"], str(tmp_path / "p.safetensors"), None)
    assert scorer.tuner.settings["class_specific"]
    assert len(scorer.prompt["context"]) == len(scorer.classes.tail_ids) == len(scorer.texts) == 2


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"images": "/nowhere"}, FileNotFoundError, "--images=/nowhere"),
        ({"images": "EMPTY"}, ValueError, r"--images=.*\.avif"),
        ({"classes": ("cat", "dog", "cat ")}, ValueError, "'cat' is both class 1 and class 3"),
        ({"classes": ("Cat", "cat")}, ValueError, "'Cat = cat'"),
        ({"classes": ("cat",)}, ValueError, "--classes gives 1 class"),
        ({"classes": (), "classes_file": "/nowhere.txt"}, ValueError, r"/nowhere\.txt"),
        ({"prompt": "/nowhere.safetensors"}, FileNotFoundError, r"/nowhere\.safetensors does not exist"),
        ({"output": "EMPTY"}, IsADirectoryError, "--output="),
    ],
)
def test_mistakes_are_named(folder, tmp_path, settings, error, message):
    (tmp_path / "empty").mkdir()
    settings = {key: str(tmp_path / "empty") if value == "EMPTY" else value for key, value in settings.items()}
    with pytest.raises(error, match=message):
        predict.run(configure(folder, **settings), epath.Path(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"images": ""}, "--images"),
        ({"classes_file": "names.txt"}, "--classes_from; given: --classes and --classes_file"),
        ({"classes": ()}, "--classes, --classes_file, --classes_from; given: none"),
        ({"template": "a photo"}, "--template='a photo'"),
        ({"top": 0}, "--top=0"),
        ({"batch_size": 0}, "--batch_size=0"),
    ],
)
def test_bad_settings_are_named(folder, settings, message):
    with pytest.raises(ValueError, match=message):
        configure(folder, **settings)


def test_a_mistake_that_shows_in_traced_code_ends_in_one_line(folder, clip, tmp_path):
    save_long(tmp_path / "p.safetensors", clip)
    flags = {
        "images": folder / "images",
        "classes": 'cat,"a small, red fish"',
        "prompt": tmp_path / "p.safetensors",
        "clip": folder / "clip",
        "workdir": tmp_path,
    }
    command = [sys.executable, "-m", "experiments.predict", *(f"--{name}={value}" for name, value in flags.items())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "('cat', 'a small, red fish')" in done.stdout
    assert done.stderr.splitlines()[-1].startswith("error: the prompt has")
    assert "Traceback" not in done.stderr
