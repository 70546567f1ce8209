"""Meta checkpoints: the learned start, regulator and step sizes in one small file."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gram_jax.clip import Clip
from gram_jax.errors import InputError
from gram_jax.meta.context import Structure
from gram_jax.meta.initialization import Meta
from gram_jax.regulators import Regulator
from gram_jax.tuners import ArrayFileError, Tuner, read_arrays, write_arrays
from gram_jax.tuners.files import check_described, check_kind, check_prompt, describe

KIND = "meta"


def save_meta(
    path: str | os.PathLike[str],
    meta: Meta,
    tuner: Tuner,
    regulator: Regulator,
    clip: Clip,
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Saves what meta-learning learned: kilobytes that say which tuner, regulator and clip they belong to.

    A file holds no class list, and the same contents make the same bytes.

    Args:
      path: the file, usually `NAME.safetensors`.
      meta: the start, structured or not, the regulator's parameters and the inner step sizes.
      tuner: the tuner whose prompt it is.
      regulator: the regulator whose parameters they are.
      clip: the clip that it was learned on.
      notes: anything else worth keeping, JSON values, e.g. the settings of the run; kept under "notes" in the header.

    Raises:
      InputError: if the tuner is class-specific (its start would belong to one class list), or `meta` is not one of
        this tuner and regulator on this clip.

    Example:
      >>> import tempfile
      >>> from gram_jax import regulators, tuners
      >>> from gram_jax.meta import init_meta
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner, regulator = tiny_clip(), tuners.coop(), regulators.affine()
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> meta = init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.1)
      >>> path = f"{tempfile.mkdtemp()}/meta.safetensors"
      >>> save_meta(path, meta, tuner, regulator, clip)
      >>> load_meta(path, tuner, regulator, clip).phi["context"]["scale"].shape == (clip.config.text.width,)
      True

    Reference:
      Our own choice.
    """
    if tuner.settings.get("class_specific"):
        raise InputError(
            f"{tuner.name} is class-specific: its start belongs to one class list, and a meta checkpoint to none; "
            "meta-learn a shared prompt."
        )
    _check("the meta checkpoint", meta, tuner, regulator, clip)
    header = {
        "kind": KIND,
        **describe(tuner, clip),
        "regulator": regulator.name,
        "regulator_settings": dict(regulator.settings),
        "notes": dict(notes or {}),
    }
    tree = {"prompt": meta.prompt, "phi": meta.phi, "log_rates": meta.log_rates}
    if meta.offsets is not None:
        tree["offsets"] = meta.offsets
    if meta.structure is not None:
        tree["structure"] = dataclasses.asdict(meta.structure)
    write_arrays(path, tree, header)


def load_meta(path: str | os.PathLike[str], tuner: Tuner, regulator: Regulator, clip: Clip) -> Meta:
    """Loads a meta checkpoint, for the tuner, regulator and clip that it was learned with.

    The header (`gram_jax.tuners.read_arrays(path)[1]`) says which these are:
    `regulators.make(header["regulator"], **header["regulator_settings"])`.

    Args:
      path: the file.
      tuner: the tuner.
      regulator: the regulator.
      clip: the clip.

    Returns:
      The `Meta`, to the last bit as it was saved.

    Raises:
      FileNotFoundError: if there is no such file.
      ArrayFileError: if the file is damaged, is no meta checkpoint, or belongs to another clip, tuner or regulator, or
        to other settings of them; the message states what was found and what was expected.

    Example:
      >>> import tempfile
      >>> from gram_jax import regulators, tuners
      >>> from gram_jax.meta import init_meta
      >>> from gram_jax.testing import tiny_clip
      >>> clip, tuner, regulator = tiny_clip(), tuners.coop(), regulators.affine()
      >>> prompt = tuner.init(jax.random.key(0), clip, None)
      >>> meta = init_meta(prompt, regulator.init(jax.random.key(1), prompt), learning_rate=0.1)
      >>> path = f"{tempfile.mkdtemp()}/meta.safetensors"
      >>> save_meta(path, meta, tuner, regulator, clip)
      >>> load_meta(path, tuner, regulators.mask(), clip)
      Traceback (most recent call last):
        ...
      gram_jax.tuners.files.ArrayFileError: ... was learned with the regulator 'affine', not with 'mask'...

    Reference:
      Our own choice.
    """
    tree, header = read_arrays(path)
    check_kind(path, header, KIND)
    check_described(path, header, tuner, clip)
    if header.get("regulator") != regulator.name:
        raise ArrayFileError(
            f"{path} was learned with the regulator {header.get('regulator')!r}, not with {regulator.name!r}; load it "
            "with that one."
        )
    if header.get("regulator_settings") != dict(regulator.settings):
        raise ArrayFileError(
            f"{path} was learned with the settings {header.get('regulator_settings')} of {regulator.name}, not with "
            f"{dict(regulator.settings)}; use those of the file."
        )
    tree = jax.tree.map(jnp.asarray, tree)
    try:
        if "structure" in tree:
            tree["structure"] = Structure(**tree["structure"])
        meta = Meta(**tree)
    except TypeError as error:
        raise ArrayFileError(f"{path} does not hold what meta-learning learned ({error}); save it again.") from error
    _check(str(path), meta, tuner, regulator, clip)
    return meta


def _check(what: str, meta: Meta, tuner: Tuner, regulator: Regulator, clip: Clip) -> None:
    check_prompt(f"the prompt of {what}", meta.prompt, tuner, clip)
    expected = {
        "phi": jax.eval_shape(regulator.init, jax.random.key(0), meta.prompt),
        "log_rates": jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((), leaf.dtype), meta.prompt),
    }
    reads = regulator.settings.get("prototypes")
    if meta.structure is None and (meta.offsets is not None or reads is not None):
        raise ArrayFileError(f"{what} has no prototypes, which its offsets or its regulator are about.")
    if meta.structure is not None:
        if getattr(meta.structure.prototypes, "ndim", None) != 2:
            raise ArrayFileError(f"the prototypes of {what} are no table; save it again.")
        count, width = meta.structure.prototypes.shape
        if reads not in (None, count):
            raise ArrayFileError(f"{what} has {count} prototypes, and {regulator.name} is one for {reads}.")
        if meta.offsets is not None:
            expected["offsets"] = jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), meta.prompt)
        vector = jax.ShapeDtypeStruct((width,), jnp.float32)
        expected["structure"] = Structure(
            jax.ShapeDtypeStruct((count, width), jnp.float32), vector, jax.ShapeDtypeStruct((), jnp.float32)
        )
    for part, shapes in expected.items():
        found, wanted = _shapes(getattr(meta, part)), _shapes(shapes)
        if found != wanted:
            raise ArrayFileError(
                f"{part} of {what} is not one of {regulator.name} for {tuner.name}'s prompt: found {found}, expected "
                f"{wanted}."
            )


def _shapes(tree: Any) -> dict[str, str]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
