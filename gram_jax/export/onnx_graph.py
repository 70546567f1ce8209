"""From a jaxpr to an ONNX graph: what depends on constants alone is computed here, the rest becomes nodes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from gram_jax.errors import InputError

Value = np.ndarray | str  # a constant, or the name of a tensor
OPSET, IR_VERSION = 18, 9
_ELEMENTWISE = {
    "abs": "Abs", "add": "Add", "add_any": "Add", "and": "And", "ceil": "Ceil", "cos": "Cos", "div": "Div",
    "eq": "Equal", "erf": "Erf", "exp": "Exp", "floor": "Floor", "ge": "GreaterOrEqual", "gt": "Greater",
    "le": "LessOrEqual", "log": "Log", "logistic": "Sigmoid", "lt": "Less", "max": "Max", "min": "Min", "mul": "Mul",
    "neg": "Neg", "not": "Not", "or": "Or", "pow": "Pow", "sign": "Sign", "sin": "Sin", "sqrt": "Sqrt", "sub": "Sub",
    "tanh": "Tanh",
}  # fmt: skip
_REDUCTIONS = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin", "reduce_sum": "ReduceSum"}
_SAME = ("copy", "copy_p", "optimization_barrier", "stop_gradient")
_BODIES = {"closed_call": "call_jaxpr", "checkpoint": "jaxpr", "custom_jvp_call": "call_jaxpr", "jit": "jaxpr",
           "custom_vjp_call": "call_jaxpr", "pjit": "jaxpr", "remat2": "jaxpr"}  # fmt: skip


class Graph:
    """Collects the nodes of an ONNX graph.

    A tensor that is broadcast keeps axes of length 1 until an operation needs its full shape: elementwise operations
    broadcast by themselves. `short` holds the names of such tensors.

    Args:
      images: the name of the tensor `[batch, size, size, channels]`.
    """

    def __init__(self, images: str):
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.short: set[str] = set()
        self._images, self._count, self._batch = images, 0, ""
        self._constants: dict[bytes, str] = {}

    def node(self, operation: str, *inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node; returns the name of its output, or a list of names."""
        from onnx import helper

        names = [self.name(each) for each in inputs]
        results = [self._new(operation) for _ in range(outputs)]
        self.nodes.append(helper.make_node(operation, names, results, **attributes))
        return results[0] if outputs == 1 else results

    def name(self, value: Value) -> str:
        """Returns the name of a tensor; a constant becomes an initializer."""
        from onnx import numpy_helper

        if isinstance(value, str):
            return value
        array = np.ascontiguousarray(value).reshape(value.shape)
        key = f"{array.dtype} {array.shape} ".encode() + array.tobytes()
        if key not in self._constants:
            self._constants[key] = self._new("constant")
            self.initializers.append(numpy_helper.from_array(array, self._constants[key]))
        return self._constants[key]

    def shape(self, sizes: Sequence[Any]) -> Value:
        """Returns a shape with the number of images in it as a tensor."""
        if all(isinstance(size, int) for size in sizes):
            return np.array(sizes, np.int64)
        if not self._batch:
            self._batch = self.node("Shape", self._images, start=0, end=1)
        parts: list[Value] = [np.array([size], np.int64) if isinstance(size, int) else self._batch for size in sizes]
        if any(not isinstance(size, int) and str(size) != "batch" for size in sizes):
            raise InputError(f"ONNX: a tensor of the shape {list(sizes)} cannot be expressed")
        return self.node("Concat", *parts, axis=0)

    def full(self, value: Value, shape: Sequence[Any]) -> Value:
        """Returns a value in its full shape."""
        if isinstance(value, np.ndarray) and value.shape != tuple(shape) and all(isinstance(s, int) for s in shape):
            return np.ascontiguousarray(np.broadcast_to(value, shape))
        if self._is_short(value, shape):
            return self.node("Expand", value, self.shape(shape))
        return value

    def all_short(self, values: Sequence[Value], shapes: Sequence[Sequence[Any]]) -> bool:
        """Returns whether no value has its full shape."""
        return all(self._is_short(*each) for each in zip(values, shapes, strict=True))

    def _is_short(self, value: Value, shape: Sequence[Any]) -> bool:
        return value in self.short if isinstance(value, str) else value.shape != tuple(shape)

    def _new(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"


def add_jaxpr(graph: Graph, jaxpr: Any, constants: Sequence[Any], inputs: Sequence[Value]) -> list[Value]:
    """Adds the operations of a jaxpr; returns its results."""
    known: dict[Any, Value] = dict(zip(jaxpr.constvars, map(np.asarray, constants), strict=True))
    known |= dict(zip(jaxpr.invars, inputs, strict=True))

    def read(variable: Any) -> Value:
        return np.asarray(variable.val, variable.aval.dtype) if hasattr(variable, "val") else known[variable]

    for equation in jaxpr.eqns:
        results = _add_equation(graph, equation, [read(variable) for variable in equation.invars])
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def _add_equation(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    name = equation.primitive.name
    if _is_constant(equation, values):
        results = equation.primitive.bind(*values, **equation.params)
        return [np.asarray(each) for each in (results if equation.primitive.multiple_results else [results])]
    if name in _SPECIAL:
        return _SPECIAL[name](graph, equation, values)
    if name in _ELEMENTWISE or name in _COMPOSED:
        return [_add_elementwise(graph, equation, values)]
    if name not in _RULES:
        raise InputError(f"ONNX: the operation {name!r} is not known")
    shapes = [variable.aval.shape for variable in equation.invars]
    results = _RULES[name](graph, equation, *map(graph.full, values, shapes))
    return results if isinstance(results, list) else [results]


def _is_constant(equation: Any, values: list[Value]) -> bool:
    """Returns whether an operation depends neither on the images nor on their number."""
    sizes = (size for variable in (*equation.invars, *equation.outvars) for size in variable.aval.shape)
    return all(isinstance(each, np.ndarray) for each in values) and all(isinstance(size, int) for size in sizes)


def _add_elementwise(graph: Graph, equation: Any, values: list[Value]) -> Value:
    name = equation.primitive.name
    if name in _COMPOSED:
        result = _COMPOSED[name](graph, equation.params, *values)
    else:
        result = graph.node(_ELEMENTWISE[name], *values)
    if graph.all_short(values, [equation.outvars[0].aval.shape] * len(values)):
        graph.short.add(result)
    return result


def _add_body(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    """Adds the operations of a function that is called."""
    body = equation.params[_BODIES[equation.primitive.name]]
    return add_jaxpr(graph, getattr(body, "jaxpr", body), getattr(body, "consts", ()), values)


def _add_scan(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    """Unrolls a scan over layers."""
    params = equation.params
    first, carried = params["num_consts"], params["num_consts"] + params["num_carry"]
    shared, carry, stacked = values[:first], values[first:carried], values[carried:]
    rows: list[list[Value]] = []
    order = range(params["length"])
    for step in reversed(order) if params["reverse"] else order:
        own = [
            each[step] if isinstance(each, np.ndarray) else graph.node("Gather", each, np.array(step, np.int64), axis=0)
            for each in stacked
        ]
        results = add_jaxpr(graph, params["jaxpr"].jaxpr, params["jaxpr"].consts, [*shared, *carry, *own])
        carry = results[: params["num_carry"]]
        rows.append(results[params["num_carry"] :])
    if rows and rows[0]:
        raise InputError("ONNX: a loop that stacks its results is not known")
    return carry


def _broadcast(graph: Graph, equation: Any, values: list[Value]) -> list[Value]:
    """Adds axes of length 1, which later operations extend if they need to."""
    (value,) = values
    shape, places = equation.params["shape"], equation.params["broadcast_dimensions"]
    added = [axis for axis in range(len(shape)) if axis not in places]
    if isinstance(value, np.ndarray):
        return [np.expand_dims(value, added)]
    source = equation.invars[0].aval.shape
    short = value in graph.short or any(source[i] != shape[place] for i, place in enumerate(places)) or bool(added)
    result = graph.node("Unsqueeze", value, np.array(added, np.int64)) if added else graph.node("Identity", value)
    if short:
        graph.short.add(result)
    return [result]


def _dot(graph: Graph, equation: Any, left: Value, right: Value) -> Value:
    (contracted, others), (batched, batched_too) = equation.params["dimension_numbers"]
    ranks = [len(variable.aval.shape) for variable in equation.invars]
    if not batched and contracted == (ranks[0] - 1,) and others == (0,) and ranks[1] == 2:
        return graph.node("MatMul", left, right)
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    lefts = [next(letters) for _ in range(ranks[0])]
    rights = [next(letters) for _ in range(ranks[1])]
    for mine, other in zip((*contracted, *batched), (*others, *batched_too), strict=True):
        rights[other] = lefts[mine]
    kept = [lefts[i] for i in batched]
    kept += [letter for i, letter in enumerate(lefts) if i not in (*contracted, *batched)]
    kept += [letter for i, letter in enumerate(rights) if i not in (*others, *batched_too)]
    return graph.node("Einsum", left, right, equation=f"{''.join(lefts)},{''.join(rights)}->{''.join(kept)}")


def _gather(graph: Graph, equation: Any, operand: Value, indices: Value) -> Value:
    """Picks rows along one axis."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    shape = equation.invars[0].aval.shape
    (axis, *rest) = numbers.start_index_map
    whole = [size == full for i, (size, full) in enumerate(zip(sizes, shape, strict=True)) if i != axis]
    single = numbers.collapsed_slice_dims == (axis,) and sizes[axis] == 1
    run = isinstance(indices, np.ndarray) and indices.shape == (1,) and not numbers.collapsed_slice_dims
    if rest or not all(whole) or not (single or run) or numbers.operand_batching_dims:
        raise InputError(f"ONNX: parts {sizes} of a tensor {shape} at places of their own cannot be expressed")
    if run:  # consecutive rows
        return graph.node("Gather", operand, indices[0] + np.arange(sizes[axis]), axis=axis)
    index = indices[..., 0] if isinstance(indices, np.ndarray) else graph.node("Squeeze", indices, np.array([-1]))
    picked = graph.node("Gather", operand, index, axis=axis)
    rank, count = len(equation.outvars[0].aval.shape), len(equation.invars[1].aval.shape) - 1
    # Where each axis of the result is among those of `picked`: axes before `axis`, of the indices, after `axis`.
    own = iter([*range(axis), *range(axis + count, rank)])
    of_index = iter(range(axis, axis + count))
    order = [next(own) if i in numbers.offset_dims else next(of_index) for i in range(rank)]
    return picked if order == sorted(order) else graph.node("Transpose", picked, perm=order)


def _reshape(graph: Graph, equation: Any, value: Value) -> Value:
    sizes = equation.params["new_sizes"]
    if sum(not isinstance(size, int) for size in sizes) > 1:
        raise InputError(f"ONNX: a tensor of the shape {list(sizes)} cannot be expressed")
    return graph.node("Reshape", value, np.array([s if isinstance(s, int) else -1 for s in sizes], np.int64))


def _slice(graph: Graph, equation: Any, value: Value) -> Value:
    params, shape = equation.params, equation.invars[0].aval.shape
    strides = params["strides"] or (1,) * len(shape)
    every = enumerate(zip(params["start_indices"], params["limit_indices"], strides, shape, strict=True))
    cut = [(axis, *part[:3]) for axis, part in every if part[:3] != (0, part[3], 1)]
    axes, starts, ends, steps = (np.array(each, np.int64) for each in zip(*cut, strict=True))
    return graph.node("Slice", value, starts, ends, axes, steps)


def _reduce(graph: Graph, equation: Any, value: Value) -> Value:
    axes = np.array(equation.params["axes"], np.int64)
    return graph.node(_REDUCTIONS[equation.primitive.name], value, axes, keepdims=0)


def _top_k(graph: Graph, equation: Any, value: Value) -> list[Value]:
    best, places = graph.node("TopK", value, np.array([equation.params["k"]], np.int64), outputs=2)
    return [best, graph.node("Cast", places, to=_type(np.dtype(np.int32)))]


def _split(graph: Graph, equation: Any, value: Value) -> list[Value]:
    sizes = equation.params["sizes"]
    parts = graph.node("Split", value, np.array(sizes, np.int64), outputs=len(sizes), axis=equation.params["axis"])
    return parts if len(sizes) > 1 else [parts]


def _type(dtype: Any) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


# Operations whose values may be short.
_SPECIAL: dict[str, Callable[..., list[Value]]] = {
    "broadcast_in_dim": _broadcast,
    "scan": _add_scan,
    **dict.fromkeys(_BODIES, _add_body),
    **dict.fromkeys(_SAME, lambda graph, equation, values: values),
}
# Elementwise operations of several nodes.
_COMPOSED: dict[str, Callable[..., Any]] = {
    "convert_element_type": lambda graph, params, x: graph.node("Cast", x, to=_type(params["new_dtype"])),
    "erfc": lambda graph, params, x: graph.node("Sub", np.float32(1), graph.node("Erf", x)),
    "integer_pow": lambda graph, params, x: graph.node("Pow", x, np.float32(params["y"])),
    "rsqrt": lambda graph, params, x: graph.node("Reciprocal", graph.node("Sqrt", x)),
    "select_n": lambda graph, params, choose, no, yes: graph.node("Where", choose, yes, no),
    "square": lambda graph, params, x: graph.node("Mul", x, x),
}
# Operations on values in their full shapes.
_RULES: dict[str, Callable[..., Any]] = {
    "concatenate": lambda graph, equation, *xs: graph.node("Concat", *xs, axis=equation.params["dimension"]),
    "dot_general": _dot,
    "gather": _gather,
    "reshape": _reshape,
    "slice": _slice,
    "split": _split,
    "squeeze": lambda graph, equation, x: graph.node("Squeeze", x, np.array(equation.params["dimensions"], np.int64)),
    "top_k": _top_k,
    "transpose": lambda graph, equation, x: graph.node("Transpose", x, perm=equation.params["permutation"]),
    **dict.fromkeys(_REDUCTIONS, _reduce),
}
