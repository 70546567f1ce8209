"""OpenCLIP and OpenAI's CLIP, the references of tests, also where their image library torchvision is not installed."""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import sys
from typing import Any
from unittest import mock

import pytest

_PARTS = ("ops", "ops.misc", "transforms", "transforms.functional")


def open_clip() -> Any:
    """Returns OpenCLIP's package; skips the test if it is not installed."""
    return reference("open_clip")


@functools.cache
def reference(name: str) -> Any:
    """Returns the package open_clip, or OpenAI's package clip; skips the test if it is not installed.

    Their models need nothing of torchvision and ftfy; stand-ins satisfy the imports of what is not installed.
    """
    pytest.importorskip("torch", reason="they are written in it")
    absent = [each for each in ("torchvision", "ftfy") if importlib.util.find_spec(each) is None]
    stand_ins = {each: mock.MagicMock() for each in absent}
    if "torchvision" in absent:
        stand_ins |= {f"torchvision.{each}": mock.MagicMock() for each in _PARTS}
    if "ftfy" in absent:
        stand_ins["ftfy"].fix_text = lambda text: text
    for each, module in stand_ins.items():
        module.__spec__ = importlib.machinery.ModuleSpec(each, None)
    sys.modules.update(stand_ins)
    try:
        return pytest.importorskip(name, reason="the reference of its own format")
    finally:
        for each in stand_ins:
            del sys.modules[each]
