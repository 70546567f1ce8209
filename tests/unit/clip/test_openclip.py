"""OpenCLIP's and OpenAI's formats, against OpenCLIP's own models, and every format of the same weights."""

from __future__ import annotations

import json
import shutil
import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest

from gram_jax.clip import (
    ImageTransform,
    WeightsError,
    convert,
    encode_image,
    encode_text,
    load_clip,
    save_clip,
    weights_hash,
)
from gram_jax.clip.formats import tags
from gram_jax.testing import tiny_clip, tiny_tokenizer
from tests.openclip import ODD, PLAIN, build, open_clip, openai_clip, write_folder

torch = pytest.importorskip("torch", reason="the references are written in it")

TEXTS = ["a cat", "a photo of a large red dog.", "the small green frog on the flower"]


def inputs(clip):
    side = clip.config.vision.image_size
    pixels = np.random.default_rng(5).normal(size=(3, side, side, 3)).astype(np.float32)
    return pixels, clip.tokenizer.encode(TEXTS)


def assert_features(clip, model):
    pixels, token_ids = inputs(clip)
    padded = np.pad(token_ids, ((0, 0), (0, clip.config.text.context_length - token_ids.shape[1])))
    padded[np.arange(padded.shape[1]) > padded.argmax(axis=1)[:, None]] = 0  # OpenCLIP's padding
    with torch.no_grad():
        image = model.encode_image(torch.tensor(pixels.transpose(0, 3, 1, 2).copy()))
        text = model.encode_text(torch.tensor(padded).long())
    for ours, theirs in ((encode_image(clip, pixels), image), (encode_text(clip, token_ids), text)):
        theirs = torch.nn.functional.normalize(theirs, dim=-1).numpy()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
        assert np.abs(theirs[0] - theirs[1]).max() > 1e-2
    np.testing.assert_allclose(clip.params["logit_scale"], model.logit_scale.item(), rtol=1e-6)


class Models(NamedTuple):
    plain: Any
    odd: Any


@pytest.fixture(scope="module")
def models():
    return Models(build(PLAIN), build(ODD))


@pytest.fixture
def folder(models, tmp_path):
    return write_folder(tmp_path / "clip", PLAIN, models.plain)


@pytest.mark.parametrize("name", ["plain", "odd"])
def test_features(models, tmp_path, name):
    config = {"plain": PLAIN, "odd": ODD}[name]
    model = getattr(models, name)
    clip = load_clip(write_folder(tmp_path, config, model))
    assert clip.config.vision.activation == clip.config.text.activation == ("gelu" if name == "odd" else "quick_gelu")
    assert_features(clip, model)


def hf_model(folder):
    from transformers import CLIPModel

    return CLIPModel.from_pretrained(folder, attn_implementation="eager").eval()


@pytest.mark.parametrize("name", ["plain", "odd"])
def test_a_converted_clip_has_the_same_features_in_transformers(models, tmp_path, name):
    from transformers import AutoProcessor

    config = {"plain": PLAIN, "odd": ODD}[name]
    source = write_folder(tmp_path / "in", config, getattr(models, name), resize_mode="squash", mean=[0.5] * 3)
    convert(source, tmp_path / "out")
    clip, model = load_clip(source), hf_model(tmp_path / "out")
    pixels, token_ids = inputs(clip)
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    theirs = processor(text=TEXTS, images=[image], return_tensors="np", padding=True)
    np.testing.assert_allclose(clip.preprocess([image]), theirs.pixel_values.transpose(0, 2, 3, 1), atol=1e-6)
    np.testing.assert_array_equal(token_ids, theirs.input_ids)
    with torch.no_grad():
        outputs = model(
            input_ids=torch.tensor(token_ids).long(), pixel_values=torch.tensor(pixels.transpose(0, 3, 1, 2).copy())
        )
    np.testing.assert_allclose(encode_image(clip, pixels), outputs.image_embeds.numpy(), rtol=0, atol=1e-5)
    np.testing.assert_allclose(encode_text(clip, token_ids), outputs.text_embeds.numpy(), rtol=0, atol=1e-5)
    assert weights_hash(load_clip(tmp_path / "out").params) == weights_hash(clip.params)


def archive(model, path, sizes):
    """Writes OpenAI's format: its own class with these weights, as TorchScript, with three more constants."""
    theirs = openai_clip().CLIP(*sizes)
    theirs.load_state_dict(model.state_dict(), strict=False)
    image_size, context_length, vocab_size = sizes[1], sizes[5], sizes[6]
    for name, value in {
        "input_resolution": image_size,
        "context_length": context_length,
        "vocab_size": vocab_size,
    }.items():
        theirs.__dict__.pop(name, None)
        theirs.register_buffer(name, torch.tensor(value))
    texts = torch.tensor([[vocab_size - 2, 5, vocab_size - 1] + (context_length - 3) * [0]])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript as a whole is deprecated, and tracing warns of constants
        traced = torch.jit.trace(theirs.eval(), (torch.zeros(1, 3, image_size, image_size), texts), check_trace=False)
        traced.save(str(path))


def test_every_format_of_the_same_weights_has_the_same_hash(models, folder, tmp_path):
    model, tokenizer = models.plain, tiny_tokenizer()
    state = model.state_dict()
    files = {
        "checkpoint": {"epoch": 3, "name": "a run", "state_dict": {f"module.{k}": v for k, v in state.items()}},
        "compiled": {f"module._orig_mod.{name}": value for name, value in state.items()},
    }
    loaded = {"OpenCLIP": load_clip(folder)}
    loaded["OpenCLIP, pickled"] = load_clip(write_folder(tmp_path / "b", PLAIN, model, "open_clip_pytorch_model.bin"))
    tokenizer.save(tmp_path)
    known = {"activation": "quick_gelu", "transform": ImageTransform(size=12, crop=(12, 12))}
    for name, content in files.items():
        torch.save(content, tmp_path / f"{name}.pt")
        loaded[name] = load_clip(tmp_path / f"{name}.pt", **known)
    archive(model, tmp_path / "archive.pt", (16, 12, 3, 64, 4, 24, 632, 64, 1, 2))
    loaded["OpenAI"] = load_clip(tmp_path / "archive.pt")
    assert_features(loaded["OpenAI"], model)
    loaded["a file beside its configuration"] = load_clip(folder / "open_clip_model.safetensors")
    hf = tmp_path / "hf"
    convert(folder, hf)
    loaded["Hugging Face"] = load_clip(hf)
    transformers = hf_model(hf)
    for name, settings in {"shards": {"max_shard_size": "60KB"}, "bin": {}, "bins": {}}.items():
        shutil.copytree(hf, tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        if name == "shards":
            transformers.save_pretrained(tmp_path / name, **settings)
        else:
            write_bins(transformers.state_dict(), tmp_path / name, 1 if name == "bin" else 3)
        loaded[name] = load_clip(tmp_path / name)
    assert (tmp_path / "shards/model.safetensors.index.json").is_file()
    hashes = {name: weights_hash(clip.params) for name, clip in loaded.items()}
    assert len(set(hashes.values())) == 1, hashes
    assert len({clip.tokenizer.content_hash for clip in loaded.values()}) == 1
    assert {clip.transform for clip in loaded.values()} == {ImageTransform(size=12, crop=(12, 12))}
    assert len({(clip.config.vision, clip.config.text) for clip in loaded.values()}) == 1


def write_bins(state, folder, count):
    names = [f"pytorch_model-0000{number + 1}-of-0000{count}.bin" for number in range(count)]
    if count == 1:
        return torch.save(state, folder / "pytorch_model.bin")
    weight_map = {key: names[index % count] for index, key in enumerate(state)}
    for name in names:
        torch.save({key: state[key] for key in state if weight_map[key] == name}, folder / name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_missing_pickled_shards_are_named(folder, tmp_path):
    convert(folder, tmp_path / "hf")
    write_bins(hf_model(tmp_path / "hf").state_dict(), tmp_path / "hf", 3)
    (tmp_path / "hf/model.safetensors").unlink()
    (tmp_path / "hf/pytorch_model-00002-of-00003.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 shards: pytorch_model-00002-of-00003.bin"):
        load_clip(tmp_path / "hf")


def test_misfits_are_named_in_the_files_own_names(models, folder):
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in models.plain.state_dict().items()}
    del state["ln_final.bias"]
    state["visual.extra"] = torch.zeros(2)
    state["text_projection"] = torch.zeros(64, 17)
    state["visual.transformer.resblocks.1.attn.in_proj_weight"] = torch.zeros(191, 64)
    save_file(state, folder / "open_clip_model.safetensors")
    with pytest.raises(WeightsError) as caught:
        load_clip(folder)
    message = str(caught.value)
    for part in (
        "does not fit open_clip_config.json",
        "1 missing (ln_final.bias [64])",
        "1 unexpected (visual.extra [2])",
        "text_projection [64, 17] instead of [64, 16]",
        "visual.transformer.resblocks.1.attn.in_proj_weight [191, 64] instead of [192, 64]",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("tower", "setting", "message"),
    [
        ("vision_cfg", {"timm_model_name": "convnext_base"}, "vision_cfg has timm_model_name='convnext_base'"),
        ("vision_cfg", {"pool_type": "avg", "qk_norm": True}, "qk_norm=True, pool_type='avg'"),
        ("text_cfg", {"hf_model_name": "roberta-base"}, "text_cfg has hf_model_name='roberta-base'"),
        ("vision_cfg", {"image_size": [12, 16]}, r"\[12, 16\]: only squares"),
        ("vision_cfg", {"width": "64"}, "open_clip_config.json"),
        ("text_cfg", {"heads": 7}, "width=64: it must be a multiple of heads=7"),
    ],
)
def test_other_architectures_are_refused(folder, tower, setting, message):
    config = PLAIN | {tower: PLAIN[tower] | setting}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config}))
    with pytest.raises(ValueError, match=message):
        load_clip(folder)


def test_the_image_transform(models, tmp_path):
    square = write_folder(tmp_path, PLAIN, models.plain, mean=[0.5] * 3, std=0.25, interpolation="bilinear")
    assert load_clip(square).transform == ImageTransform(12, (12, 12), 2, mean=(0.5,) * 3, std=(0.25,) * 3)
    write_folder(tmp_path, PLAIN, models.plain, resize_mode="squash")
    assert load_clip(tmp_path).transform == ImageTransform((12, 12), None)
    own = ImageTransform(size=24, crop=(12, 12))
    assert load_clip(tmp_path, transform=own).transform == own
    write_folder(tmp_path, PLAIN, models.plain, resize_mode="longest")
    with pytest.raises(ValueError, match=r"open_clip_config.json: resize_mode='longest'"):
        load_clip(tmp_path)


def test_what_the_tensors_do_not_show_is_asked(models, tmp_path):
    torch.save({"state_dict": models.plain.state_dict()}, tmp_path / "epoch_3.pt")
    tiny_tokenizer().save(tmp_path)
    for settings in ({}, {"activation": "gelu"}, {"transform": ImageTransform(12, (12, 12))}):
        with pytest.raises(ValueError, match=r"epoch_3.pt does not state its activation .* MODEL:epoch_3.pt"):
            load_clip(tmp_path / "epoch_3.pt", **settings)
    with pytest.raises(ValueError, match=r"activation='swish'.* gelu, quick_gelu"):
        load_clip(tmp_path / "epoch_3.pt", activation="swish")
    with pytest.raises(ValueError, match=r"does not fit ViT-B-16: image_size is 12 instead of 224, patch_size is 4"):
        load_clip(f"ViT-B-16:{tmp_path / 'epoch_3.pt'}")
    with pytest.raises(FileNotFoundError, match=r"no file 'epoch_9.pt'"):
        load_clip("ViT-B-16:epoch_9.pt")


def test_a_file_of_a_known_model(models, tmp_path, monkeypatch):
    monkeypatch.setitem(tags.MODELS, "ViT-T-4", tags.Sizes(12, 4, 3, 64, 64, 2, 16))
    torch.save({"state_dict": models.plain.state_dict()}, tmp_path / "epoch_3.pt")
    tiny_tokenizer().save(tmp_path)
    quick, exact = (load_clip(f"ViT-T-4{end}:{tmp_path / 'epoch_3.pt'}") for end in ("-quickgelu", ""))
    assert (quick.config.text.activation, exact.config.vision.activation) == ("quick_gelu", "gelu")
    assert quick.transform == ImageTransform(12, (12, 12))
    assert_features(quick, models.plain)


def test_a_contradicted_activation(folder):
    with pytest.raises(
        ValueError, match=r"open_clip_config.json states the activation quick_gelu, .* activation is gelu; leave it out"
    ):
        load_clip(folder, activation="gelu")
    assert load_clip(folder, activation="quick_gelu").config.text.activation == "quick_gelu"


def test_an_unusual_width_of_a_bare_file(models, tmp_path):
    torch.save(models.odd.state_dict(), tmp_path / "odd.pt")
    known = {"activation": "gelu", "transform": ImageTransform(14, (14, 14))}
    with pytest.raises(WeightsError, match=r"48 wide, .* 64.* open_clip_config.json"):
        load_clip(tmp_path / "odd.pt", **known)
    write_folder(tmp_path, ODD, models.odd, "unused.bin")
    assert_features(load_clip(tmp_path / "odd.pt"), models.odd)


@pytest.mark.parametrize("content", [{}, {"a": torch.zeros(2)}, {"visual.class_embedding": torch.zeros(2)}])
def test_files_that_are_no_clip(tmp_path, content):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model.pt"):
        load_clip(tmp_path / "model.pt", activation="gelu", transform=ImageTransform())


def test_files_that_are_no_weights(folder, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"notes.txt is a file, but no weights .*\.safetensors"):
        load_clip(tmp_path / "notes.txt")
    (tmp_path / "loose").mkdir()
    (folder / "open_clip_model.safetensors").rename(tmp_path / "loose/model.safetensors")
    with pytest.raises(FileNotFoundError, match=r"config.json and no open_clip_config.json; .*loose/model.safetensors"):
        load_clip(tmp_path / "loose")
    with pytest.raises(FileNotFoundError, match=r"clip has no open_clip_model.safetensors or "):
        load_clip(folder)


def test_a_folder_of_timm_has_two_models(folder):
    """Its config.json and model.safetensors are an image classifier's."""
    (folder / "config.json").write_text(json.dumps({"architecture": "vit_base_patch16_clip_224", "num_classes": 0}))
    (folder / "model.safetensors").write_bytes(b"")
    assert load_clip(folder).config.embed_dim == 16


def test_a_folder_with_both_formats_is_hugging_faces(folder, tmp_path):
    other = tiny_clip()
    save_clip(other, folder, overwrite=True)
    assert weights_hash(load_clip(folder).params) == weights_hash(other.params)
    (folder / "model.safetensors").rename(tmp_path / "model.safetensors")
    assert load_clip(folder).config.vision.width == 64


def test_a_folder_of_sentence_transformers(tmp_path):
    clip = tiny_clip(text_layers=1, vision_layers=1)
    save_clip(clip, tmp_path / "0_CLIPModel")
    modules = [{"idx": 0, "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    assert weights_hash(load_clip(tmp_path).params) == weights_hash(clip.params)
    for path, message in (("../x", "the folder '../x'"), (None, "no CLIPModel")):
        (tmp_path / "modules.json").write_text(json.dumps([{"path": path, "type": "CLIPModel"}]))
        with pytest.raises(ValueError, match=message):
            load_clip(tmp_path)


@pytest.mark.slow
def test_a_model_of_real_size(tmp_path):
    config = open_clip().get_model_config("ViT-B-16-quickgelu")
    model = build(config)
    archive(model, tmp_path / "vit.pt", (512, 224, 12, 768, 16, 77, 49408, 512, 8, 12))
    clip = load_clip(tmp_path / "vit.pt")
    assert_features(clip, model)
    folder = write_folder(tmp_path / "folder", config, model)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert weights_hash(load_clip(folder).params) == weights_hash(clip.params)
