"""experiments.meta_train on a planted hierarchy: learning, files, reproducibility, resuming and errors."""

import dataclasses
import functools
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from etils import epath

import gram_jax as gram
from experiments import meta_train
from gram_jax import regulators, runtime, tasks, tuners
from gram_jax.data import load_corpus, ordered
from gram_jax.errors import InputError
from gram_jax.testing import tiny_clip

PAIRS = 96


@pytest.fixture(scope="module")
def clip():
    return tiny_clip(text_layers=1, vision_layers=1)


@pytest.fixture(scope="module")
def hierarchy(clip):
    """Eight classes of twelve pairs in two themes, whose images point, with noise, to their class's text."""
    names = ["cat", "dog", "bird", "fish", "oak", "elm", "ash", "fir"]
    texts = np.asarray(gram.encode_text(clip, clip.tokenize([f"a photo of a {name}." for name in names])))
    labels = np.arange(PAIRS) % 8
    rng = np.random.default_rng(0)
    text = texts[labels]
    image = text + 0.1 * rng.standard_normal(text.shape)
    image = (image / np.linalg.norm(image, axis=1, keepdims=True)).astype(np.float32)
    corpus = load_corpus("glyphs", pairs=PAIRS)
    about = {
        "clip": gram.weights_hash(clip.params),
        "corpus": "glyphs",
        "content_hash": corpus.content_hash,
        "pairs": PAIRS,
        "seed": 0,
    }
    themes = ["animal" if label < 4 else "tree" for label in labels]
    return tasks.from_groups(themes, [names[label] for label in labels], image, text, about=about)


@pytest.fixture(scope="module")
def config():
    return meta_train.Config(
        regulator="gated_low_rank(rank=2, hidden=3)",
        steps=4,
        warmup_steps=0,
        batch_size=2,
        ways=2,
        shots=2,
        fewest_shots=0,
        queries=1,
        cross_ways=2,
        cross_queries=1,
        max_tokens=0,
        cohesive=1.0,
        inner_steps=2,
        inner_rate=0.5,
        inner_schedule="constant",
        depths=1,
        learning_rate=0.01,
        offsets_learning_rate=5e-3,
        phi_learning_rate=3e-3,
        clip_norm=10.0,
        eval_every=2,
        eval_batches=1,
        save_every=2,
        devices=1,
    )


@pytest.fixture(scope="module")
def trained(clip, hierarchy, config, tmp_path_factory):
    folder = epath.Path(tmp_path_factory.mktemp("trained"))
    return folder, *meta_train.train(config, folder, clip, hierarchy)


def test_words_after_a_context_are_meta_trained_with(clip, hierarchy, config, tmp_path):
    # As published: two vectors from "a photo", followed by the words "of a".
    settings = {"tuner": "maple(depth=1)", "steps": 1, "inner_steps": 1, "eval_every": 0}
    learned, _ = meta_train.train(dataclasses.replace(config, **settings), epath.Path(tmp_path), clip, hierarchy)
    initial = tuners.maple(depth=1).init(jax.random.key(0), clip, None)
    for after, before in zip(jax.tree.leaves(learned.prompt), jax.tree.leaves(initial), strict=True):
        assert after.shape == before.shape
        assert not np.allclose(after, before, atol=1e-4)


def test_learns_prompt_and_regulator_and_keeps_the_rates(clip, hierarchy, trained):
    _, learned, _ = trained
    tuner, regulator = tuners.coop(init_text="a photo of a"), regulators.gated_low_rank(rank=2, hidden=3)
    initial = tuner.init(jax.random.key(0), clip, None)
    phi = regulator.init(jax.random.key(1), initial)
    # Adam's first steps are as long as the learning rate in every entry, and the schedule falls from there.
    moved = np.abs(learned.prompt["context"] - initial["context"])
    assert 0.01 < moved.max() < 0.04 + 1e-6
    changed = jax.tree.map(lambda new, old: bool(np.any(new != old)), learned.phi, phi)
    assert changed["context"]["up"]
    assert np.allclose(learned.rates["context"], 0.5)
    # An offset for each theme, whose prototype is where the theme's images and texts lie.
    assert learned.offsets["context"].shape == (2, *initial["context"].shape)
    assert all(0.01 < np.abs(offset).max() < 0.04 + 1e-6 for offset in learned.offsets["context"] * 2)
    images = [hierarchy.image_features[hierarchy.themes[hierarchy.classes] == theme].mean(0) for theme in (0, 1)]
    width = clip.config.embed_dim
    np.testing.assert_allclose(learned.structure.prototypes[:, :width], images, atol=1e-5)


def test_a_warmup_is_a_run_with_short_loops_from_which_the_run_begins(clip, hierarchy, config, tmp_path):
    settings = dataclasses.replace(config, eval_every=0, steps=2, inner_steps=4)
    learned, _ = meta_train.train(dataclasses.replace(settings, warmup_steps=3), tmp_path / "one", clip, hierarchy)
    rates = {"learning_rate": 2e-3, "offsets_learning_rate": 5e-3, "phi_learning_rate": 3e-3}
    alone = {"regulator": "identity", "learn": ("prompt", "offsets")}
    short = dataclasses.replace(settings, steps=3, inner_steps=3, inner_rate=0.3, **alone, **rates)
    meta_train.train(short, tmp_path / "first", clip, hierarchy)
    second = dataclasses.replace(settings, meta=str(tmp_path / "first" / "meta.safetensors"))
    expected, _ = meta_train.train(second, tmp_path / "second", clip, hierarchy)
    jax.tree.map(np.testing.assert_array_equal, learned, expected)


def test_without_offsets_all_tasks_share_one_initialization(clip, hierarchy, config, tmp_path):
    settings = dataclasses.replace(config, learn=("prompt", "phi"), steps=1, eval_every=0)
    learned, _ = meta_train.train(settings, tmp_path, clip, hierarchy)
    assert learned.offsets is None
    assert gram.meta.initial_prompt(learned) is learned.prompt


def test_tasks_in_sequence_drawn_by_processes_give_the_same_result(clip, hierarchy, config, trained, tmp_path):
    settings = dataclasses.replace(config, tasks_at_once=1, worker_processes=2, eval_every=0)
    learned, _ = meta_train.train(settings, tmp_path, clip, hierarchy)
    jax.tree.map(lambda new, old: np.testing.assert_allclose(new, old, rtol=1e-4, atol=1e-5), learned, trained[1])


@pytest.mark.parametrize("learn", [("prompt", "phi"), ("phi", "offsets")])
def test_a_structured_regulator_has_a_prototype_for_each_theme(clip, hierarchy, config, tmp_path, learn):
    settings = dataclasses.replace(config, regulator="structured(rank=2)", learn=learn, steps=2, eval_every=0)
    learned, _ = meta_train.train(settings, tmp_path, clip, hierarchy)
    found, _, regulator, _ = gram.load_meta(tmp_path / "meta.safetensors", clip)
    assert dict(regulator.settings) == {"prototypes": 2, "rank": 2}
    assert (found.offsets is None) == ("offsets" not in learn)
    assert found.structure.prototypes.shape == (2, 2 * clip.config.embed_dim)
    for name in ("up", "shared_up", "scale", "shared_scale"):  # each prototype has learned
        assert np.abs(learned.phi["context"][name]).max(axis=-1).all()


def test_a_run_starts_from_a_meta_checkpoint(clip, hierarchy, config, trained, tmp_path):
    first, path = trained[1], str(trained[0] / "meta.safetensors")
    changes = {"meta": path, "regulator": "kronecker(rank=2)", "steps": 1, "eval_every": 0, "inner_schedule": "cosine"}
    small = {"learning_rate": 1e-12, "offsets_learning_rate": 1e-12}
    settings = dataclasses.replace(config, **changes, **small, inner_steps=4, depths=2)
    learned, _ = meta_train.train(settings, tmp_path, clip, hierarchy)
    for part in ("prompt", "offsets", "structure"):
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, atol=1e-9), getattr(learned, part), getattr(first, part)
        )
    assert np.abs(learned.phi["context"]["log_scale"]).max() > 1e-4
    with pytest.raises(InputError, match=r"--tuner=coop\(num_tokens=3\)"):
        meta_train.train(dataclasses.replace(settings, tuner="coop(num_tokens=3)"), tmp_path / "b", clip, hierarchy)


def test_a_run_starts_from_the_parts_that_another_tuner_has(clip, hierarchy, config, trained, tmp_path, capsys):
    first, path = trained[1], str(trained[0] / "meta.safetensors")
    tuner = "ivlp(depth=1, num_visual=2, init_text='a photo of a')"
    small = {"learning_rate": 1e-12, "offsets_learning_rate": 1e-12}
    settings = dataclasses.replace(config, meta=path, tuner=tuner, steps=1, eval_every=0, inner_steps=1, **small)
    learned, _ = meta_train.train(settings, tmp_path, clip, hierarchy)
    assert f"from the coop of {path}: text/context" in capsys.readouterr().out
    initial = tuners.parse(tuner).init(jax.random.key(0), clip, None)
    close = functools.partial(np.testing.assert_allclose, atol=1e-9)
    close(learned.prompt["text"]["context"], first.prompt["context"])
    close(learned.offsets["text"]["context"], first.offsets["context"])
    close(learned.prompt["visual"]["tokens"], initial["visual"]["tokens"])
    assert learned.offsets["visual"]["tokens"].shape == (2, *initial["visual"]["tokens"].shape)
    close(learned.structure.prototypes, first.structure.prototypes)


def test_the_meta_checkpoint_contains_result_and_origin(clip, trained, hierarchy):
    folder, learned, _ = trained
    path = folder / "meta.safetensors"
    found, tuner, regulator, notes = gram.load_meta(path, clip)
    jax.tree.map(np.testing.assert_array_equal, found, learned)
    assert tuner.settings == tuners.coop(init_text="a photo of a").settings
    assert regulator.settings == regulators.gated_low_rank(rank=2, hidden=3).settings
    assert notes["tasks"]["content_hash"] == hierarchy.about["content_hash"]
    assert notes["settings"]["inner_steps"] == 2


def test_metrics_contain_losses_before_and_after_adaptation(trained):
    folder, _, rows = trained
    records = runtime.read_metrics(folder / "metrics.jsonl")
    steps = [record for record in records if "same" in record]
    assert [record["step"] for record in steps] == [1, 2, 3, 4]
    assert all(record["adapted"] < record["support"] for record in steps)
    assert [row.step for row in rows if row.metric == "val_same"] == [0, 2, 4]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(clip, hierarchy, config, trained, tmp_path):
    folder = trained[0]
    meta_train.train(config, tmp_path / "again", clip, hierarchy)
    assert (tmp_path / "again/meta.safetensors").read_bytes() == (folder / "meta.safetensors").read_bytes()
    other = meta_train.train(dataclasses.replace(config, seed=1), tmp_path / "other", clip, hierarchy)[0]
    assert not np.array_equal(other.prompt["context"], trained[1].prompt["context"])


def test_runs_that_differ_in_tasks_alone_share_one_compiled_step(clip, hierarchy, config, tmp_path):
    step = meta_train.make_program(dataclasses.replace(config, tasks=""), 1)[2]
    learned = [
        meta_train.train(dataclasses.replace(config, tasks=name), tmp_path / name, clip, hierarchy)[0]
        for name in ("some", "others")
    ]
    assert step.update._cache_size() == 1
    jax.tree.map(np.testing.assert_array_equal, *learned)


def test_a_stopped_run_resumes_to_the_same_bytes(clip, hierarchy, config, trained, tmp_path, monkeypatch):
    def stop(self, step, state, *rest, **more):
        if step == 2:
            self.wait()
            raise SystemExit(0)

    with monkeypatch.context() as patched:
        patched.setattr(runtime.Checkpoints, "exit_if_preempted", stop)
        with pytest.raises(SystemExit):
            meta_train.train(config, tmp_path, clip, hierarchy)
    assert not (tmp_path / "meta.safetensors").exists()
    meta_train.train(config, tmp_path, clip, hierarchy)
    for name in ("meta.safetensors", "metrics.jsonl"):
        assert (tmp_path / name).read_bytes() == (trained[0] / name).read_bytes()


def test_another_configuration_in_the_same_workdir_is_refused(clip, hierarchy, config, trained):
    with pytest.raises(runtime.CheckpointError, match=r"inner_rate.*0\.5.*0\.25"):
        meta_train.train(dataclasses.replace(config, inner_rate=0.25), trained[0], clip, hierarchy)


def test_a_tuner_that_needs_pixels_reads_them_from_the_corpus(clip, hierarchy, config, tmp_path):
    pixel = dataclasses.replace(config, tuner="vpt(num_tokens=1)", steps=1, eval_every=0, gradient="first_order")
    learned, _ = meta_train.train(pixel, tmp_path, clip, hierarchy)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(learned))
    images = meta_train.image_reader(hierarchy, tuners.vpt(), clip, None)(np.array([[3, 5]]))
    corpus = load_corpus("glyphs", pairs=PAIRS)
    np.testing.assert_array_equal(images[0], clip.preprocess(corpus.images(hierarchy.members[[3, 5]])))
    with pytest.raises(ValueError, match=r"corpus .*hash"):
        meta_train.train(pixel, tmp_path / "other", clip, hierarchy, corpus=load_corpus("glyphs", pairs=PAIRS, seed=1))


def test_a_loss_that_is_not_finite_names_the_tasks(clip, hierarchy, config, tmp_path):
    broken = dataclasses.replace(
        hierarchy, image_features=np.where(hierarchy.classes[:, None] == 0, np.nan, hierarchy.image_features)
    )
    settings = dataclasses.replace(config, eval_every=0)
    with pytest.raises(InputError, match=r"not finite in tasks \[\d+.*there is no checkpoint.*--debug_nans"):
        meta_train.train(settings, tmp_path, clip, broken)


def test_a_failed_run_names_the_last_checkpoint_and_debug_nans_the_operation(
    clip, hierarchy, config, tmp_path, monkeypatch
):
    factor = np.nan

    def poisoned(draw, *arguments, **settings):
        def drawn(index):
            return jax.tree.map(lambda leaf: leaf * factor if leaf.dtype == np.float32 else leaf, draw(index))

        return ordered(lambda index: drawn(index) if index == 3 else draw(index), *arguments, **settings)

    settings = dataclasses.replace(config, eval_every=0)
    monkeypatch.setattr(meta_train, "ordered", poisoned)
    left = rf"loss of step 3 is not finite in tasks \[6, 7\]; the last good checkpoint is step 2 in {tmp_path}/check"
    with pytest.raises(InputError, match=left):
        meta_train.train(settings, tmp_path, clip, hierarchy)
    again = dataclasses.replace(settings, debug_nans=True)  # the same command, with the flag
    with pytest.raises(InputError, match=left + r".*not finite: tasks\.support"):
        meta_train.train(again, tmp_path, clip, hierarchy)
    factor = np.float32(1e38)  # finite, and its products are not
    place = r".*checks: .*nan generated by primitive: .*, at /.*gram_jax/.*\.py:\d+ \("
    with pytest.raises(InputError, match=left + place):
        meta_train.train(again, tmp_path, clip, hierarchy)
    monkeypatch.undo()
    meta_train.train(again, tmp_path, clip, hierarchy)  # what was saved is good


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ways": 50}, "52 different texts"),
        ({"shots": 50}, "51 members"),
        ({"learn": ("prompt", "speed")}, "learn=.*'speed'"),
        ({"gradient": "third_order"}, "gradient='third_order'"),
        ({"tuner": "coop(num_tokens=90)"}, "context"),
        ({"devices": 99}, "--devices=99"),
        ({"tasks_at_once": 3}, "--tasks_at_once=3:.* 2 tasks"),
    ],
)
def test_bad_settings_are_refused_before_anything_runs(clip, hierarchy, config, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        meta_train.train(dataclasses.replace(config, **change), tmp_path, clip, hierarchy)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"steps": 0}, "steps=0"),
        ({"inner_rate": -1.0}, r"inner_rate=-1\.0"),
        ({"tuner": "coop("}, "--tuner=coop"),
        ({"tuner": "coop(tokens=3)"}, "--tuner=.*'tokens'"),
        ({"regulator": "3"}, "--regulator=3"),
        ({"regulator": "gated_low_rnk"}, "--regulator=gated_low_rnk.*'gated_low_rank'"),
    ],
)
def test_impossible_flags_are_refused(change, named):
    with pytest.raises(InputError, match=named):
        meta_train.Config(**change)


def test_a_hierarchy_of_another_clip_ends_in_one_line(hierarchy, tmp_path):
    gram.save_clip(tiny_clip(seed=5), tmp_path / "clip")
    tasks.save_hierarchy(tmp_path / "hierarchy.safetensors", hierarchy)
    arguments = [f"--tasks={tmp_path / 'hierarchy.safetensors'}", f"--clip={tmp_path / 'clip'}"]
    command = [sys.executable, "-m", "experiments.meta_train", *arguments, f"--workdir={tmp_path / 'run'}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "clip" in done.stderr
    assert "Traceback" not in done.stderr


def test_tasks_of_pairs_come_from_captions(clip, config, tmp_path, capsys):
    rng, count, names = np.random.default_rng(0), 600, ["cat", "dog", "bird", "fish", "oak", "elm"]
    shown, labels = rng.integers(2, size=count), rng.integers(6, size=count)
    captions = [f"a {('red', 'noisy')[look]} {names[label]}" for look, label in zip(shown, labels, strict=True)]
    features = np.eye(16)[labels] + np.eye(16)[8 + shown] + 0.1 * rng.standard_normal((count, 16))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    about = {"clip": gram.weights_hash(clip.params), "content_hash": "0"}
    hierarchy = tasks.from_groups(
        ["thing"] * count, [names[label] for label in labels], features, features, about=about
    )
    corpus = types.SimpleNamespace(captions=captions, content_hash="0")
    pairs = dataclasses.replace(config, cross="pairs", ways=4)
    meta_train.train(pairs, epath.Path(tmp_path), clip, hierarchy, corpus=corpus)
    told = capsys.readouterr().out
    assert "'red': ['red']" in told
    assert "1 themes, 12 classes" in told  # two attributes of six objects
    assert gram.load_meta(tmp_path / "meta.safetensors", clip).notes["settings"]["cross"] == "pairs"
    with pytest.raises(InputError, match="built from a corpus"):
        meta_train.train(
            pairs, epath.Path(tmp_path / "other"), clip, hierarchy, corpus=types.SimpleNamespace(content_hash="1")
        )
