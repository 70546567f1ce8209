"""OpenCLIP and OpenAI's CLIP, the references of tests, also where the packages that they import are not installed."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from typing import Any
from unittest import mock

import pytest

_TORCHVISION = (
    "torchvision",
    *(f"torchvision.{part}" for part in ("ops", "ops.misc", "transforms", "transforms.functional")),
)


@functools.cache
def open_clip() -> Any:
    """Returns OpenCLIP's package; skips the test if it is not installed.

    Its models need nothing of torchvision and ftfy; stand-ins satisfy the imports of what is not installed.
    """
    pytest.importorskip("torch", reason="OpenCLIP is written in it")
    from transformers import CLIPModel  # noqa: F401  # looks for torchvision once, which must be before the stand-ins

    absent = [*(_TORCHVISION if _is_absent("torchvision") else ()), *(["ftfy"] if _is_absent("ftfy") else ())]
    stand_ins = {name: mock.MagicMock(fix_text=lambda text: text) for name in absent}
    for name, module in stand_ins.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules.update(stand_ins)
    try:
        return pytest.importorskip("open_clip", reason="the reference of its own format")
    finally:
        for name in stand_ins:
            del sys.modules[name]


@functools.cache
def openai_clip() -> Any:
    """Returns the module with OpenAI's model, without the rest of its package; skips the test if it is absent."""
    pytest.importorskip("torch", reason="OpenAI's CLIP is written in it")
    package = importlib.util.find_spec("clip")
    if package is None or package.submodule_search_locations is None:
        pytest.skip("OpenAI's package clip is not installed")
    path = f"{package.submodule_search_locations[0]}/model.py"
    spec = importlib.util.spec_from_file_location("openai_clip_model", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _is_absent(name: str) -> bool:
    return importlib.util.find_spec(name) is None
