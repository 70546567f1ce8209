"""OpenCLIP's models and pretrained tags: what they decide and their tensors do not show, and where they are.

Whether a model has quick GELU is a property of its tag: files with equal tensors may differ in it, and the wrong choice
costs several points of accuracy without any error. The same holds for the mean and standard deviation of pixels.

Reference:
  github.com/mlfoundations/open_clip, src/open_clip/pretrained.py and model_configs (version 3.3.0).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from gram_jax.clip.formats.source import Facts, Sizes
from gram_jax.clip.images import MEAN, STD, ImageTransform
from gram_jax.errors import InputError, require_known

FILES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
QUICK_GELU = "-quickgelu"  # the ending of models with quick GELU; it may be left out before a tag
RESAMPLE = {"bicubic": 3, "bilinear": 2}  # Pillow's numbers
HALF = (0.5, 0.5, 0.5)


def transform_of(
    image_size: int,
    mean: Any = MEAN,
    std: Any = STD,
    interpolation: str = "bicubic",
    resize_mode: str = "shortest",
) -> ImageTransform:
    """Returns the image transform of OpenCLIP's settings: `shortest` crops the center, `squash` ignores the aspect."""
    require_known("interpolation", interpolation, RESAMPLE)
    require_known("resize_mode", resize_mode, ("shortest", "squash"))
    mean, std = (tuple(map(float, value)) if isinstance(value, list | tuple) else 3 * (value,) for value in (mean, std))
    square = (image_size, image_size)
    size, crop = (image_size, square) if resize_mode == "shortest" else (square, None)
    return ImageTransform(size, crop, RESAMPLE[interpolation], mean=mean, std=std)


OPENAI = Facts("openai", "quick_gelu", transform_of)


class Tag(NamedTuple):
    """A pretrained tag: its repository on the Hugging Face hub, activation and image transform."""

    repository: str
    quick_gelu: bool = False
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"

    def transform(self, image_size: int) -> ImageTransform:
        """Returns the image transform for an image size."""
        return transform_of(image_size, self.mean, self.std, self.interpolation, self.resize_mode)


MODELS: dict[str, Sizes] = {
    "RN50": Sizes(224, None, (3, 4, 6, 3), 64, 512, 12, 1024),
    "RN101": Sizes(224, None, (3, 4, 23, 3), 64, 512, 12, 512),
    "RN50x4": Sizes(288, None, (4, 6, 10, 6), 80, 640, 12, 640),
    "RN50x16": Sizes(384, None, (6, 8, 18, 8), 96, 768, 12, 768),
    "RN50x64": Sizes(448, None, (3, 15, 36, 10), 128, 1024, 12, 1024),
    "PE-Core-T-16-384": Sizes(384, 16, 12, 192, 512, 12, 512),
    "PE-Core-S-16-384": Sizes(384, 16, 12, 384, 512, 12, 512),
    "PE-Core-B-16": Sizes(224, 16, 12, 768, 1024, 24, 1024),
    "PE-Core-L-14-336": Sizes(336, 14, 24, 1024, 1024, 24, 1024),
    "PE-Core-bigG-14-448": Sizes(448, 14, 50, 1536, 1280, 24, 1280),
    "ViT-B-32": Sizes(224, 32, 12, 768, 512, 12, 512),
    "ViT-B-32-256": Sizes(256, 32, 12, 768, 512, 12, 512),
    "ViT-B-16": Sizes(224, 16, 12, 768, 512, 12, 512),
    "ViT-L-14": Sizes(224, 14, 24, 1024, 768, 12, 768),
    "ViT-L-14-336": Sizes(336, 14, 24, 1024, 768, 12, 768),
    "ViT-H-14": Sizes(224, 14, 32, 1280, 1024, 24, 1024),
    "ViT-H-14-378": Sizes(378, 14, 32, 1280, 1024, 24, 1024),
    "ViT-g-14": Sizes(224, 14, 40, 1408, 1024, 24, 1024),
    "ViT-bigG-14": Sizes(224, 14, 48, 1664, 1280, 32, 1280),
}
_PERCEPTION = {"mean": HALF, "std": HALF, "interpolation": "bilinear", "resize_mode": "squash"}
TAGS: dict[str, dict[str, Tag]] = {
    **{
        name: {"meta": Tag(f"timm/{name}", **_PERCEPTION)}  # type: ignore[arg-type]
        for name in MODELS
        if name.startswith("PE-Core")
    },
    "RN50": {
        "openai": Tag("timm/resnet50_clip.openai", quick_gelu=True),
        "yfcc15m": Tag("timm/resnet50_clip.yfcc15m", quick_gelu=True),
        "cc12m": Tag("timm/resnet50_clip.cc12m", quick_gelu=True),
    },
    "RN101": {
        "openai": Tag("timm/resnet101_clip.openai", quick_gelu=True),
        "yfcc15m": Tag("timm/resnet101_clip.yfcc15m", quick_gelu=True),
    },
    "RN50x4": {
        "openai": Tag("timm/resnet50x4_clip.openai", quick_gelu=True),
    },
    "RN50x16": {
        "openai": Tag("timm/resnet50x16_clip.openai", quick_gelu=True),
    },
    "RN50x64": {
        "openai": Tag("timm/resnet50x64_clip.openai", quick_gelu=True),
    },
    "ViT-B-32": {
        "openai": Tag("timm/vit_base_patch32_clip_224.openai", quick_gelu=True),
        "laion400m_e31": Tag("timm/vit_base_patch32_clip_224.laion400m_e31", quick_gelu=True),
        "laion400m_e32": Tag("timm/vit_base_patch32_clip_224.laion400m_e32", quick_gelu=True),
        "laion2b_e16": Tag("timm/vit_base_patch32_clip_224.laion2b_e16"),
        "laion2b_s34b_b79k": Tag("laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
        "datacomp_xl_s13b_b90k": Tag("laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K"),
        "datacomp_m_s128m_b4k": Tag("laion/CLIP-ViT-B-32-DataComp.M-s128M-b4K"),
        "commonpool_m_clip_s128m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.M.clip-s128M-b4K"),
        "commonpool_m_laion_s128m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.M.laion-s128M-b4K"),
        "commonpool_m_image_s128m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.M.image-s128M-b4K"),
        "commonpool_m_text_s128m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.M.text-s128M-b4K"),
        "commonpool_m_basic_s128m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.M.basic-s128M-b4K"),
        "commonpool_m_s128m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.M-s128M-b4K"),
        "datacomp_s_s13m_b4k": Tag("laion/CLIP-ViT-B-32-DataComp.S-s13M-b4K"),
        "commonpool_s_clip_s13m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.S.clip-s13M-b4K"),
        "commonpool_s_laion_s13m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.S.laion-s13M-b4K"),
        "commonpool_s_image_s13m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.S.image-s13M-b4K"),
        "commonpool_s_text_s13m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.S.text-s13M-b4K"),
        "commonpool_s_basic_s13m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.S.basic-s13M-b4K"),
        "commonpool_s_s13m_b4k": Tag("laion/CLIP-ViT-B-32-CommonPool.S-s13M-b4K"),
        "metaclip_400m": Tag("timm/vit_base_patch32_clip_224.metaclip_400m", quick_gelu=True),
        "metaclip_fullcc": Tag("timm/vit_base_patch32_clip_224.metaclip_2pt5b", quick_gelu=True),
    },
    "ViT-B-32-256": {
        "datacomp_s34b_b86k": Tag("laion/CLIP-ViT-B-32-256x256-DataComp-s34B-b86K"),
    },
    "ViT-B-16": {
        "openai": Tag("timm/vit_base_patch16_clip_224.openai", quick_gelu=True),
        "laion400m_e31": Tag("timm/vit_base_patch16_clip_224.laion400m_e31"),
        "laion400m_e32": Tag("timm/vit_base_patch16_clip_224.laion400m_e32"),
        "laion2b_s34b_b88k": Tag("laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
        "datacomp_xl_s13b_b90k": Tag("laion/CLIP-ViT-B-16-DataComp.XL-s13B-b90K"),
        "datacomp_l_s1b_b8k": Tag("laion/CLIP-ViT-B-16-DataComp.L-s1B-b8K"),
        "commonpool_l_clip_s1b_b8k": Tag("laion/CLIP-ViT-B-16-CommonPool.L.clip-s1B-b8K"),
        "commonpool_l_laion_s1b_b8k": Tag("laion/CLIP-ViT-B-16-CommonPool.L.laion-s1B-b8K"),
        "commonpool_l_image_s1b_b8k": Tag("laion/CLIP-ViT-B-16-CommonPool.L.image-s1B-b8K"),
        "commonpool_l_text_s1b_b8k": Tag("laion/CLIP-ViT-B-16-CommonPool.L.text-s1B-b8K"),
        "commonpool_l_basic_s1b_b8k": Tag("laion/CLIP-ViT-B-16-CommonPool.L.basic-s1B-b8K"),
        "commonpool_l_s1b_b8k": Tag("laion/CLIP-ViT-B-16-CommonPool.L-s1B-b8K"),
        "dfn2b": Tag("apple/DFN2B-CLIP-ViT-B-16", quick_gelu=True),
        "metaclip_400m": Tag("timm/vit_base_patch16_clip_224.metaclip_400m", quick_gelu=True),
        "metaclip_fullcc": Tag("timm/vit_base_patch16_clip_224.metaclip_2pt5b", quick_gelu=True),
    },
    "ViT-L-14": {
        "openai": Tag("timm/vit_large_patch14_clip_224.openai", quick_gelu=True),
        "laion400m_e31": Tag("timm/vit_large_patch14_clip_224.laion400m_e31"),
        "laion400m_e32": Tag("timm/vit_large_patch14_clip_224.laion400m_e32"),
        "laion2b_s32b_b82k": Tag("laion/CLIP-ViT-L-14-laion2B-s32B-b82K", mean=HALF, std=HALF),
        "datacomp_xl_s13b_b90k": Tag("laion/CLIP-ViT-L-14-DataComp.XL-s13B-b90K"),
        "commonpool_xl_clip_s13b_b90k": Tag("laion/CLIP-ViT-L-14-CommonPool.XL.clip-s13B-b90K"),
        "commonpool_xl_laion_s13b_b90k": Tag("laion/CLIP-ViT-L-14-CommonPool.XL.laion-s13B-b90K"),
        "commonpool_xl_s13b_b90k": Tag("laion/CLIP-ViT-L-14-CommonPool.XL-s13B-b90K"),
        "metaclip_400m": Tag("timm/vit_large_patch14_clip_224.metaclip_400m", quick_gelu=True),
        "metaclip_fullcc": Tag("timm/vit_large_patch14_clip_224.metaclip_2pt5b", quick_gelu=True),
        "dfn2b": Tag("apple/DFN2B-CLIP-ViT-L-14", quick_gelu=True),
        "dfn2b_s39b": Tag("apple/DFN2B-CLIP-ViT-L-14-39B"),
    },
    "ViT-L-14-336": {
        "openai": Tag("timm/vit_large_patch14_clip_336.openai", quick_gelu=True),
    },
    "ViT-H-14": {
        "laion2b_s32b_b79k": Tag("laion/CLIP-ViT-H-14-laion2B-s32B-b79K"),
        "metaclip_fullcc": Tag("timm/vit_huge_patch14_clip_224.metaclip_2pt5b", quick_gelu=True),
        "metaclip_altogether": Tag("timm/vit_huge_patch14_clip_224.metaclip_altogether"),
        "dfn5b": Tag("apple/DFN5B-CLIP-ViT-H-14", resize_mode="squash", quick_gelu=True),
    },
    "ViT-H-14-378": {
        "dfn5b": Tag("apple/DFN5B-CLIP-ViT-H-14-378", resize_mode="squash", quick_gelu=True),
    },
    "ViT-g-14": {
        "laion2b_s12b_b42k": Tag("laion/CLIP-ViT-g-14-laion2B-s12B-b42K"),
        "laion2b_s34b_b88k": Tag("laion/CLIP-ViT-g-14-laion2B-s34B-b88K"),
    },
    "ViT-bigG-14": {
        "laion2b_s39b_b160k": Tag("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k"),
        "metaclip_fullcc": Tag("timm/vit_gigantic_patch14_clip_224.metaclip_2pt5b", quick_gelu=True),
    },
}


def facts_of_tag(model: str, tag: str) -> tuple[str, Facts]:
    """Returns the hub repository, and the facts, of `MODEL:TAG`; raises InputError if the table lacks it.

    Example:
      >>> repository, facts = facts_of_tag("ViT-B-16", "dfn2b")
      >>> repository, facts.activation
      ('apple/DFN2B-CLIP-ViT-B-16', 'quick_gelu')
    """
    name = require_model(model)
    tags = TAGS[name]
    require_known(f"tag of {name}", tag := tag.lower().replace("-", "_"), tags)
    found = tags[tag]
    if model != name and not found.quick_gelu:
        raise InputError(f"{model}:{tag} was trained with GELU, not quick GELU; name it {name}:{tag}")
    activation = "quick_gelu" if found.quick_gelu else "gelu"
    return found.repository, Facts(f"{name}:{tag}", activation, found.transform, MODELS[name])


def facts_of_model(model: str) -> Facts:
    """Returns the facts of a file that was trained with OpenCLIP as this model, with OpenCLIP's own pixels."""
    name = require_model(model)
    perception = TAGS.get(name, {}).get("meta")  # has pixels of its own
    pixels = transform_of if perception is None else perception.transform
    return Facts(model, "gelu" if model == name else "quick_gelu", pixels, MODELS[name])


def require_model(model: str) -> str:
    """Returns the name of a model without the ending for quick GELU; raises InputError for an unknown one."""
    name = model.removesuffix(QUICK_GELU)
    require_known("model", name, MODELS)
    return name


def from_openai_name(name: str) -> str | None:
    """Returns `MODEL:openai` for OpenAI's own name of a model, None for other names.

    Example:
      >>> from_openai_name("ViT-L/14@336px"), from_openai_name("RN50"), from_openai_name("owner/clip")
      ('ViT-L-14-336:openai', 'RN50:openai', None)
    """
    model = name.replace("/", "-").replace("@336px", "-336")
    return f"{model}:openai" if "openai" in TAGS.get(model, {}) else None


def openai_file(model: str) -> str:
    """Returns the name of OpenAI's file of a model.

    Example:
      >>> openai_file("ViT-L-14-336"), openai_file("RN50")
      ('ViT-L-14-336px.pt', 'RN50.pt')
    """
    return f"{model.removesuffix(QUICK_GELU)}.pt".replace("-336.pt", "-336px.pt")
