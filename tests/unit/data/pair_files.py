"""Small files of pairs for several tests, and what the readers find in them."""

import io
import json
import tarfile

from PIL import Image

from gram_jax.data import Pair, Reading, Skipped, plan_units, read_unit


def png(value: int) -> bytes:
    """A small image that differs from others."""
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (value, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def everything(spec: str, **settings) -> list[Pair | Skipped]:
    """The pairs of all units, each sent through JSON as a worker process gets it."""
    units = [json.loads(json.dumps(unit)) for unit in plan_units(spec, Reading(**settings))]
    return [found for unit in units for found in read_unit(unit)]


def skips(found: list[Pair | Skipped]) -> list[tuple[str, str]]:
    """Name and reason of what is no pair, without what belongs to none."""
    return [(each.name, each.reason) for each in found if isinstance(each, Skipped) and each.reason != "not used"]


def unused(found: list[Pair | Skipped]) -> list[tuple[str, str]]:
    """Name and kind of what belongs to no pair."""
    return [(each.name, each.detail) for each in found if isinstance(each, Skipped) and each.reason == "not used"]


def pairs(found: list[Pair | Skipped]) -> list[Pair]:
    """The pairs alone."""
    return [each for each in found if isinstance(each, Pair)]


def pack(path, members, mode="w"):
    """A tar archive of (name, bytes) or of ready headers."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            header = tarfile.TarInfo(name)
            header.size = len(content)
            archive.addfile(header, io.BytesIO(content))
    return path
