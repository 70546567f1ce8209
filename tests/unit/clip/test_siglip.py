"""SigLIP, SigLIP 2 and MetaCLIP 2 against transformers' own models, in PyTorch, with the same random weights."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

import gram_jax
from gram_jax.clip import (
    ClipConfig,
    TextPrompt,
    Tokenizer,
    VisualPrompt,
    embed_tokens,
    encode_classes,
    encode_image,
    encode_patches,
    encode_text,
    load_clip,
    pair_probabilities,
    save_clip,
    weights_hash,
)
from gram_jax.clip.formats import openclip
from gram_jax.testing import tiny_clip, tiny_siglip
from tests.unit.clip.random_weights import randomize

torch = pytest.importorskip("torch", reason="the reference is transformers' SiglipModel, which is written in it")
transformers = pytest.importorskip("transformers")

TEXTS = ["a cat", "a photo of a large red dog.", "The small green frog (on) the flower!"]
NAMES = ["cat", "small_dog", "large green frog"]
CONFIGS = {
    "siglip": {},
    "another size": {
        "text_layers": 2, "text_heads": 3, "text_context_length": 20, "vision_layers": 4, "vision_width": 20,
        "vision_heads": 5, "embed_dim": 20, "vision_image_size": 21, "vision_patch_size": 5,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS.values(), ids=CONFIGS.keys())
def pair(request, tmp_path_factory):
    """Returns a SiglipModel, and the clip loaded from the files that transformers writes."""
    folder = tmp_path_factory.mktemp("siglip")
    save_clip(tiny_siglip(**request.param), folder)  # for the tokenizer and the transform
    config = transformers.SiglipConfig(**json.loads((folder / "config.json").read_text()), attn_implementation="eager")
    model = randomize(transformers.SiglipModel(config))
    model.save_pretrained(folder)
    return model, load_clip(folder)


def pixels_of(clip, images=3):
    side = clip.config.vision.image_size
    return np.random.default_rng(5).normal(size=(images, side, side, 3)).astype(np.float32)


def torch_outputs(model, pixels, token_ids):
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(np.asarray(token_ids)).long(),
            pixel_values=torch.tensor(np.asarray(pixels).transpose(0, 3, 1, 2).copy()),
        )


def test_features_and_logits(pair):
    model, clip = pair
    pixels, whole = pixels_of(clip), clip.tokenizer.encode(TEXTS, length=clip.config.text.context_length)
    expected = torch_outputs(model, pixels, whole)
    image, text = encode_image(clip, pixels), encode_text(clip, whole)
    np.testing.assert_allclose(image, expected.image_embeds, rtol=0, atol=1e-5)
    np.testing.assert_allclose(text, expected.text_embeds, rtol=0, atol=1e-5)
    assert np.abs(np.asarray(image[0] - image[1])).max() > 1e-2
    assert np.abs(np.asarray(text[0] - text[1])).max() > 1e-2
    # gram_jax.logits leaves the bias out, which every softmax does too.
    scale, bias = np.exp(np.asarray(clip.params["logit_scale"])), np.asarray(clip.params["logit_bias"])
    logits = gram_jax.logits(image, text, clip.params["logit_scale"])
    np.testing.assert_allclose(logits + bias, expected.logits_per_image, rtol=0, atol=1e-5 * scale)
    probabilities = pair_probabilities(clip, logits)
    np.testing.assert_allclose(probabilities, torch.sigmoid(expected.logits_per_image), rtol=0, atol=1e-5)


def test_texts_are_filled_with_padding(pair):
    """Texts cut to the longest, and texts with other ids behind the end, are read as whole texts."""
    model, clip = pair
    whole = clip.tokenizer.encode(TEXTS, length=clip.config.text.context_length)
    expected = torch_outputs(model, pixels_of(clip, 1), whole).text_embeds
    cut = clip.tokenizer.encode(TEXTS)
    assert cut.shape[1] < whole.shape[1]
    np.testing.assert_allclose(encode_text(clip, cut), expected, rtol=0, atol=1e-5)
    ends = (cut == clip.tokenizer.eos_token_id).argmax(1)
    other = np.where(np.arange(cut.shape[1]) > ends[:, None], 7, cut)
    np.testing.assert_allclose(encode_text(clip, other), expected, rtol=0, atol=1e-5)
    endless = np.full_like(whole, 7)  # a long text that was cut before its end token
    expected = torch_outputs(model, pixels_of(clip, 1), endless).text_embeds
    np.testing.assert_allclose(encode_text(clip, endless), expected, rtol=0, atol=1e-5)


def test_classes_and_contexts(pair):
    """A context that is the embedding of words must give the features of the text with these words."""
    model, clip = pair
    classes = clip.class_tokens(NAMES, "a photo of the {}.")
    texts = [f"a photo of the {name.replace('_', ' ')}." for name in NAMES]
    whole = clip.tokenizer.encode(texts, length=clip.config.text.context_length)
    expected = torch_outputs(model, pixels_of(clip, 1), whole).text_embeds
    np.testing.assert_allclose(encode_classes(clip, classes), expected, rtol=0, atol=1e-5)
    context = embed_tokens(clip, clip.tokenize(["a photo of the"])[0, :-1])
    np.testing.assert_allclose(encode_classes(clip, classes, TextPrompt(context)), expected, rtol=0, atol=1e-5)
    per_class = np.repeat(context[None], len(NAMES), 0)
    np.testing.assert_allclose(encode_classes(clip, classes, TextPrompt(per_class)), expected, rtol=0, atol=1e-5)
    # The name first: "cat a photo of the".
    texts = [f"{name.replace('_', ' ')} a photo of the" for name in NAMES]
    whole = clip.tokenizer.encode(texts, length=clip.config.text.context_length)
    expected = torch_outputs(model, pixels_of(clip, 1), whole).text_embeds
    found = encode_classes(clip, classes, TextPrompt(context, class_position="front"))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_deep_text_prompts(pair):
    """Replaces the first tokens before a layer of transformers' encoder."""
    model, clip = pair
    rng = np.random.default_rng(0)
    width = clip.config.text.width
    context, deep = rng.normal(size=(2, width)), rng.normal(size=(1, 2, width))
    classes = clip.class_tokens(NAMES)
    layer = model.text_model.encoder.layers[1]
    inserted = torch.tensor(deep[0]).float().expand(3, -1, -1)
    handle = layer.register_forward_pre_hook(lambda module, args: (torch.cat([inserted, args[0][:, 2:]], 1), *args[1:]))
    table = model.text_model.embeddings.token_embedding.weight
    tails = clip.tokenizer.encode(
        [name.replace("_", " ") for name in NAMES], length=clip.config.text.context_length - 2
    )
    embedded = torch.cat([torch.tensor(context).float().expand(3, -1, -1), table[torch.tensor(tails).long()]], 1)
    with torch.no_grad():
        hidden = embedded + model.text_model.embeddings.position_embedding.weight
        hidden = model.text_model.final_layer_norm(model.text_model.encoder(hidden)[0])
        expected = torch.nn.functional.normalize(model.text_model.head(hidden[:, -1]))
    handle.remove()
    found = encode_classes(clip, classes, TextPrompt(context.astype(np.float32), deep.astype(np.float32)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("placement", ["before_norm", "after_norm", "after_class"])
def test_visual_prompts_join_the_layers_but_are_not_pooled(pair, placement):
    model, clip = pair
    tokens = np.random.default_rng(1).normal(size=(2, clip.config.vision.width)).astype(np.float32)
    pixels = pixels_of(clip)
    tower = model.vision_model
    with torch.no_grad():
        patches = tower.embeddings(torch.tensor(pixels.transpose(0, 3, 1, 2).copy()))
        hidden = torch.cat([patches, torch.tensor(tokens).expand(len(pixels), -1, -1)], 1)
        hidden = tower.post_layernorm(tower.encoder(hidden)[0])[:, : patches.shape[1]]
        expected = torch.nn.functional.normalize(tower.head(hidden))
    found = encode_image(clip, pixels, VisualPrompt(tokens, placement=placement))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert np.abs(np.asarray(found - encode_image(clip, pixels))).max() > 1e-3


def test_patches(pair):
    model, clip = pair
    pixels = pixels_of(clip)
    features, patches = encode_patches(clip, pixels)
    with torch.no_grad():
        hidden = model.vision_model(torch.tensor(pixels.transpose(0, 3, 1, 2).copy())).last_hidden_state
        expected = model.vision_model.head(hidden.reshape(-1, 1, hidden.shape[-1])).reshape(hidden.shape)
    np.testing.assert_allclose(features, encode_image(clip, pixels), rtol=0, atol=1e-6)
    np.testing.assert_allclose(patches, expected, rtol=0, atol=1e-5)


def test_a_saved_clip_is_that_of_transformers(pair, tmp_path):
    model, clip = pair
    save_clip(clip, tmp_path / "saved")
    again = transformers.SiglipModel.from_pretrained(tmp_path / "saved", attn_implementation="eager").eval()
    for (name, ours), theirs in zip(again.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
    loaded = load_clip(tmp_path / "saved")
    assert (loaded.config, loaded.tokenizer, loaded.transform) == (clip.config, clip.tokenizer, clip.transform)
    assert weights_hash(loaded.params) == weights_hash(clip.params)


def test_pytorch_files(pair, tmp_path):
    model, clip = pair
    save_clip(clip, tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert weights_hash(load_clip(tmp_path).params) == weights_hash(clip.params)


def test_configurations_store_only_what_differs():
    """The content of google/siglip-so400m-patch14-224's and siglip2-giant-opt's kind of config.json."""
    text = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
    vision = {**text, "patch_size": 14}
    so400m = {"model_type": "siglip", "text_config": {**text, "max_position_embeddings": 16}, "vision_config": vision}
    theirs, ours = transformers.SiglipConfig(**so400m), ClipConfig.from_hf(so400m)
    assert (ours.text.context_length, ours.text.vocab_size, ours.vision.num_patches) == (16, 32000, 256)
    assert (ours.embed_dim, ours.text.mlp_width) == (theirs.text_config.projection_size, 4304)
    assert ours.text.norm_eps == ours.vision.norm_eps == 1e-6
    filled = ClipConfig.from_hf(theirs.to_dict())
    ids = {"bos_token_id": None, "eos_token_id": 1}  # the tokenizer's ids replace CLIP's, which the file states
    assert (filled.vision, dataclasses.replace(filled.text, **ids)) == (ours.vision, ours.text)
    giant = {"hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 16, "intermediate_size": 6144}
    giant = {"model_type": "siglip", "text_config": {**text, "vocab_size": 256000}, "vision_config": giant}
    with pytest.raises(ValueError, match=r"projection_size=1152 .*hidden_size=1536"):
        ClipConfig.from_hf(giant)
    giant["text_config"]["projection_size"] = 1536
    assert (ClipConfig.from_hf(giant).embed_dim, ClipConfig.from_hf(giant).text.vocab_size) == (1536, 256000)
    with pytest.raises(ValueError, match="vision_use_head=false"):
        ClipConfig.from_hf({"model_type": "siglip", "vision_config": {"vision_use_head": False}})
    with pytest.raises(ValueError, match=r"model_type='siglip2'.*'siglip'"):
        ClipConfig.from_hf({"model_type": "siglip2"})


def test_ids_come_from_the_tokenizer(tmp_path):
    """The config.json of SigLIP keeps CLIP's ids 49406 and 49407."""
    clip = tiny_siglip()
    save_clip(clip, tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["text_config"] |= {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    (tmp_path / "config.json").write_text(json.dumps(content))
    text = load_clip(tmp_path).config.text
    assert (text.bos_token_id, text.eos_token_id, text.pad_token_id) == (None, 1, 1)


@pytest.fixture(scope="module")
def metaclip(tmp_path_factory):
    """A MetaClip2Model whose end token has the id 2, as in the published weights, and is not the highest id."""
    folder = tmp_path_factory.mktemp("metaclip_2")
    vocab = [("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    words = ["a", "photo", "of", "the", "cat", "small", "dog", "large", "green", "frog", "red", "on", "flower"]
    vocab += [(f"▁{word}", -5.0) for word in words] + [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz.()!"]
    transformers.XLMRobertaTokenizer(vocab=vocab, model_max_length=24).save_pretrained(folder)
    ids = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    tiny = tiny_clip().config.to_hf()
    text = tiny["text_config"] | ids | {"vocab_size": len(vocab) + 1}  # and <mask>
    config = transformers.MetaClip2Config(
        text_config=text, vision_config=tiny["vision_config"], projection_dim=16, attn_implementation="eager"
    )
    model = randomize(transformers.MetaClip2Model(config))
    model.save_pretrained(folder)
    return model, folder


def test_metaclip_2(metaclip, tmp_path):
    model, folder = metaclip
    clip = load_clip(folder)
    assert clip.config.text.eos_rule == "first"
    pixels = pixels_of(clip)
    for token_ids in (clip.tokenizer.encode(TEXTS), clip.tokenizer.encode(TEXTS, length=24)):
        expected = torch_outputs(model, pixels, token_ids)
        np.testing.assert_allclose(encode_image(clip, pixels), expected.image_embeds, rtol=0, atol=1e-5)
        np.testing.assert_allclose(encode_text(clip, token_ids), expected.text_embeds, rtol=0, atol=1e-5)
    classes = clip.class_tokens(NAMES, "a photo of the {}.")
    context = embed_tokens(clip, clip.tokenize(["a photo of the"])[0, 1:-1])
    np.testing.assert_allclose(
        encode_classes(clip, classes, TextPrompt(context)), encode_classes(clip, classes), rtol=0, atol=1e-5
    )
    save_clip(clip, tmp_path / "saved")
    again = transformers.MetaClip2Model.from_pretrained(tmp_path / "saved")
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    assert load_clip(tmp_path / "saved").config == clip.config


def test_a_tokenizer_of_another_family_is_refused(metaclip, tmp_path):
    save_clip(tiny_siglip(), tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["model_type"] = "clip"
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_clip(tmp_path)
    clip = tiny_siglip()
    with pytest.raises(ValueError, match=r"bos_token_id 0.*start_token False"):
        save_clip(clip.replace(tokenizer=Tokenizer.from_folder(metaclip[1], 16, "metaclip_2")), tmp_path / "other")


@pytest.mark.parametrize(
    ("trunk", "vocab_size", "name"),
    [
        ("vit_base_patch16_siglip_224", 32000, "google/siglip-base-patch16-224"),
        ("vit_giantopt_patch16_siglip_384", 256000, "google/siglip2-giant-opt-patch16-384"),
    ],
)
def test_the_layout_of_timm_is_refused_with_the_name_of_the_other(trunk, vocab_size, name):
    towers = {"text_cfg": {"vocab_size": vocab_size}, "vision_cfg": {"timm_model_name": trunk}}
    with pytest.raises(ValueError, match=f"{name}$"):
        openclip.read_config({"model_cfg": towers})


@pytest.mark.slow
def test_the_published_size(tmp_path):
    """google/siglip-base-patch16-224's sizes, 203 million random weights."""
    save_clip(tiny_siglip(text_context_length=64), tmp_path)
    config = transformers.SiglipConfig(attn_implementation="eager")
    model = transformers.SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").unlink()
    clip = load_clip(tmp_path)
    assert clip.transform.output_size == (224, 224)
    pixels, whole = pixels_of(clip, 2), clip.tokenizer.encode(TEXTS, length=64)
    expected = torch_outputs(model, pixels, whole)
    np.testing.assert_allclose(encode_image(clip, pixels), expected.image_embeds, rtol=0, atol=1e-5)
    np.testing.assert_allclose(encode_text(clip, clip.tokenizer.encode(TEXTS)), expected.text_embeds, rtol=0, atol=1e-5)
