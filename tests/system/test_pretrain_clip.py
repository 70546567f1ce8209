"""experiments.pretrain_clip at toy size: learning, bit-identical resume, the saved clip."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from etils import epath

import gram_jax as gram
from experiments.pretrain_clip import run as pretrain_clip
from experiments.pretrain_clip.patches import with_patches
from gram_jax import evaluation
from gram_jax.errors import InputError

TOY = pretrain_clip.Config(
    steps=6,
    batch_size=8,
    warmup=1,
    decay=2,
    ramp=4,
    vocabulary=560,
    vocabulary_pairs=200,
    embed_dim=16,
    vision_width=32,
    vision_layers=2,
    text_width=32,
    text_layers=2,
    save_every=2,
    eval_every=3,
    probe_images=2,
    datasets=("chess",),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = epath.Path(tmp_path_factory.mktemp("pretrain"))
    return workdir, pretrain_clip.run(TOY, workdir)


def test_writes_a_clip_and_results(finished):
    workdir, results = finished
    clip = gram.load_clip(workdir / "clip")
    assert clip.config.vision.width == 32
    assert results.environment["weights"] == gram.weights_hash(clip.params)
    methods = {(row.method, row.domain) for row in results.rows}
    plain = {("zero_shot:fitting", None), ("zero_shot:photo", None), ("linear_probe", None)}
    assert methods == plain | {("zero_shot:fitting", "unseen faces")}
    evaluation.write_results(workdir / "results.json", results)
    records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "fitting" in record] == [3, 6]


def test_resumes_to_the_bit(finished, tmp_path, monkeypatch):
    workdir, _ = finished
    step, calls = pretrain_clip.train_step, []

    def killed_at_the_fourth(*arguments):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(pretrain_clip, "train_step", killed_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        pretrain_clip.run(TOY, epath.Path(tmp_path))
    monkeypatch.setattr(pretrain_clip, "train_step", step)
    pretrain_clip.run(TOY, epath.Path(tmp_path))
    for name in ("clip/model.safetensors", "clip/tokenizer.json", "metrics.jsonl"):
        assert (workdir / name).read_bytes() == (tmp_path / name).read_bytes()


def test_another_configuration_is_refused_by_name(finished):
    workdir, _ = finished
    with pytest.raises(ValueError, match=r"text_width.* 32.* 64"):
        pretrain_clip.run(dataclasses.replace(TOY, text_width=64), workdir)


@pytest.mark.parametrize("debug", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_loss_that_is_not_finite_is_not_saved(tmp_path, debug):
    config = dataclasses.replace(TOY, learning_rate=1e30, save_every=1, debug_nans=debug)
    where = r"checks: .*, at /.*\.py:\d+ \(" if debug else "--debug_nans"
    message = rf"step 2 is not finite; .*step 2 in .*\. .*{where}"
    with pytest.raises(InputError, match=message):
        pretrain_clip.run(config, epath.Path(tmp_path))
    assert not (tmp_path / "clip").exists()


def test_step_learns_and_compiles_once():
    config = dataclasses.replace(TOY, learning_rate=3e-3, steps=200, warmup=2)
    clip, optimizer = pretrain_clip.make_clip(config), pretrain_clip.make_optimizer(config)
    state = {"params": clip.params, "optimizer": optimizer.init(clip.params)}
    images, tokens = pretrain_clip.make_batch(config, clip.tokenizer, 0)
    before = pretrain_clip.train_step._cache_size()
    losses = []
    for _ in range(64):
        state, metrics = pretrain_clip.train_step(state, clip.replace(params=None), images, tokens, optimizer)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(8), rel=0.3)
    assert losses[-1] < 0.5 * losses[0]
    assert pretrain_clip.train_step._cache_size() == before + 1


def test_schedule_rises_stays_and_falls():
    config = dataclasses.replace(TOY, steps=100, warmup=10, decay=40, learning_rate=1.0, weight_decay=0.0)
    optimizer = pretrain_clip.make_optimizer(config)
    params = {"w": np.ones((2, 2), np.float32)}
    state = optimizer.init(params)
    sizes = []
    for _ in range(100):
        # A constant gradient makes every Adam update as long as the learning rate.
        updates, state = optimizer.update({"w": np.full((2, 2), 0.1, np.float32)}, state, params)
        sizes.append(float(-updates["w"][0, 0]))
    expected = [min(1.0, i / 10, (100 - i) / 40) for i in range(100)]
    np.testing.assert_allclose(sizes, expected, atol=2e-3)
    assert isinstance(optimizer, optax.GradientTransformation)


def test_batches_are_pure_and_grow_harder():
    clip = pretrain_clip.make_clip(TOY)
    first, again = (pretrain_clip.make_batch(TOY, clip.tokenizer, 3) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert first[0].shape == (8, 32, 32, 3)
    assert first[1].shape[1] % pretrain_clip.LENGTH_STEP == 0
    easy, _ = pretrain_clip.make_batch(TOY, clip.tokenizer, 0)
    assert set(np.unique(easy[:, 0, 0])) <= {245}  # corners of centered black-on-white characters
    hard, _ = pretrain_clip.make_batch(TOY, clip.tokenizer, 5)
    assert len(np.unique(hard[:, 0, 0], axis=0)) > 1


def test_finer_patches_are_embedded_like_resized_ones():
    clip = gram.load_clip("mini")
    finer = with_patches(clip, 4)
    patches = np.random.default_rng(0).standard_normal((5, 4, 4, 3)).astype(np.float32)
    resized = np.stack([jax.image.resize(patch, (8, 8, 3), "linear") for patch in patches])
    before, after = (np.asarray(each.params["vision"]["patch_embedding"]) for each in (clip, finer))
    np.testing.assert_allclose(patches.reshape(5, -1) @ after, resized.reshape(5, -1) @ before, atol=1e-4)
    positions = finer.params["vision"]["position_embedding"]
    np.testing.assert_array_equal(positions[0], clip.params["vision"]["position_embedding"][0])
    corners = [1, 8, 57, 64]  # where linear interpolation keeps the values
    np.testing.assert_allclose(
        positions[np.array(corners)], clip.params["vision"]["position_embedding"][np.array([1, 4, 13, 16])], atol=1e-6
    )
    assert np.isfinite(gram.encode_image(finer, np.zeros((1, 32, 32, 3), np.float32))).all()
    jax.tree.map(np.testing.assert_array_equal, with_patches(clip, 8).params, clip.params)
    with pytest.raises(InputError, match="patch_size=5"):
        with_patches(clip, 5)


def test_training_continues_from_a_clip(tmp_path):
    config = dataclasses.replace(TOY, clip="mini", patch_size=16, ramp=1, learning_rate=1e-9, weight_decay=0.0)
    pretrain_clip.run(config, epath.Path(tmp_path))
    clip, start = gram.load_clip(tmp_path / "clip"), with_patches(gram.load_clip("mini"), 16)
    assert (clip.config, clip.tokenizer) == (start.config, start.tokenizer)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-3), clip.params, start.params)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="--patch_size=5"):
        pretrain_clip.Config(patch_size=5)
    with pytest.raises(ValueError, match="--steps=0"):
        pretrain_clip.Config(steps=0)
    with pytest.raises(ValueError, match="'runes'"):
        pretrain_clip.Config(datasets=("runes",))
    assert jax.process_count() == 1
