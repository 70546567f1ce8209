"""A classifier as an ONNX file."""

from __future__ import annotations

import json
from typing import Any

from etils import epath

from gram_jax.errors import InputError, explain
from gram_jax.evaluation.scoring import Scorer
from gram_jax.export.card import CARD, describe
from gram_jax.export.onnx_graph import IR_VERSION, OPSET, Graph, add_jaxpr
from gram_jax.export.program import BATCH, symbolic_images, traced
from gram_jax.io import PathLike, write_file, write_json

FILE = "classifier.onnx"
LIMIT = 2**31 - 1  # bytes of a protocol buffer
INPUT, OUTPUT = "pixel_values", "probabilities"


def save_onnx(folder: PathLike, scorer: Scorer) -> None:
    """Writes classifier.onnx, weights included, and classifier.json.

    The input "pixel_values" is float32 `[batch, 3, size, size]`, as Hugging Face's image processors return it; the
    output "probabilities" is float32 `[batch, classes]`. The batch may have any size. Needs the package onnx.

    Args:
      folder: the folder; made if it does not exist.
      scorer: the classifier, from `evaluation.make_scorer`; its clip computes in float32.
    """
    try:
        import onnx  # noqa: F401  # optional
    except ImportError as error:
        raise InputError('the ONNX export needs the package onnx: pip install "gram_jax[onnx]"') from error
    if (dtype := scorer.clip.config.compute_dtype) != "float32":
        raise InputError(f"compute_dtype={dtype!r}: the ONNX export needs a clip that computes in float32")
    card = describe(scorer)
    with explain(f"{scorer.tuner.name}: ", "; export it as stablehlo"):
        content = _model(scorer, card)
    write_file(epath.Path(folder) / FILE, content)
    write_json(epath.Path(folder) / CARD, card)


def _model(scorer: Scorer, card: dict[str, Any]) -> bytes:
    from onnx import TensorProto, helper

    images = symbolic_images(scorer.clip)
    closed = traced(scorer, images)
    size, channels = images.shape[2:]
    graph = Graph("images")
    graph.nodes.append(helper.make_node("Transpose", [INPUT], ["images"], perm=[0, 2, 3, 1]))
    (result,) = add_jaxpr(graph, closed.jaxpr, closed.consts, ["images"])
    result = graph.full(result, (images.shape[0], len(scorer.names)))
    graph.nodes.append(helper.make_node("Identity", [graph.name(result)], [OUTPUT]))
    pixels = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, [BATCH, channels, size, size])
    probabilities = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, [BATCH, len(scorer.names)])
    whole = helper.make_graph(graph.nodes, "classifier", [pixels], [probabilities], graph.initializers)
    model = helper.make_model(
        whole, ir_version=IR_VERSION, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="gram_jax"
    )
    helper.set_model_props(model, {"gram_jax": json.dumps(card)})
    if (length := model.ByteSize()) > LIMIT:
        raise InputError(f"the ONNX file would have {length} bytes, more than the limit {LIMIT}")
    return model.SerializeToString()
