"""A function of arrays as an ONNX graph: its jaxpr, traced with symbolic sizes and translated primitive by primitive.

It knows the primitives that a codec is made of and stops with an error at any other. What depends on constants only is
computed here and stored.
"""

from collections.abc import Callable

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 18, 8  # of ONNX 1.13, 2022

# One node each.
_OF_ONE = "abs", "asinh", "exp", "log", "neg", "round", "sign", "sin", "sqrt", "tanh"
_OF_TWO = "add", "and", "div", "max", "min", "mul", "or", "pow", "sub"
_SAME = {name: name.capitalize() for name in _OF_ONE + _OF_TWO} | {"eq": "Equal", "gt": "Greater", "lt": "Less"}


def convert(function, arguments: dict, results: tuple[str, ...], metadata: dict) -> onnx.ModelProto:
    """`function` as a model.

    Args:
      function: of as many arrays as there are `arguments`, to a tuple of arrays.
      arguments: name to `jax.ShapeDtypeStruct`, with sizes of `jax.export.symbolic_shape` where they may vary.
      results: a name for each array that it returns.
      metadata: strings by name, kept in the model.

    Raises:
      ValueError: a primitive, or a use of one, that is not known here.
    """
    closed = jax.make_jaxpr(function)(*arguments.values())
    graph = _Graph(arguments)
    outputs = _run(graph, closed.jaxpr, closed.consts, list(arguments))
    for name, value in zip(results, outputs, strict=True):
        graph.nodes.append(helper.make_node("Identity", [graph.name(value)], [name]))
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "codec",
            [_signature(name, a) for name, a in arguments.items()],
            [_signature(name, v.aval) for name, v in zip(results, closed.jaxpr.outvars, strict=True)],
            list(graph.constants.values()),
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="jaxcodec",
    )
    helper.set_model_props(model, metadata)
    onnx.checker.check_model(model)
    return model


class _Graph:
    """The nodes so far. A value is a NumPy array where it is constant, else the name of a node's output."""

    def __init__(self, arguments):
        self.nodes = []
        self.constants = {}  # equal arrays are stored once
        self.variables = {}  # "t" -> what computes it, (1,) int64: the first size of an argument that it occurs in
        self.sizes = {}  # "160*t + 320" -> what computes it
        for name, argument in arguments.items():
            for axis, size in enumerate(argument.shape):
                if isinstance(size, int):
                    continue
                variable, slope, offset = _linear(size)
                if variable not in self.variables:
                    actual = self.add("Shape", name, start=axis, end=axis + 1)
                    self.variables[variable] = self.add("Div", self.add("Sub", actual, _int64(offset)), _int64(slope))

    def add(self, kind, *inputs, results=1, **attributes):
        """The name of a new node's first result; that of the next is the same with "_1" behind it."""
        output = f"{kind}_{len(self.nodes)}"
        outputs = [output, *(f"{output}_{number}" for number in range(1, results))]
        self.nodes.append(helper.make_node(kind, [self.name(x) for x in inputs], outputs, **attributes))
        return output

    def name(self, value):
        if isinstance(value, str):
            return value
        value = np.asarray(value, _numpy_type(value), order="C")
        key = (value.dtype.str, value.shape, value.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(value, f"constant_{len(self.constants)}")
        return self.constants[key].name

    def shape(self, sizes):
        """Sizes, symbolic or not, as a vector."""
        if all(isinstance(size, int | np.integer) for size in sizes):
            return np.array(sizes, np.int64)
        return self.add("Concat", *[self._size(size) for size in sizes], axis=0)

    def _size(self, size):
        if isinstance(size, int | np.integer):
            return _int64(size)
        if str(size) not in self.sizes:
            known = {name: _Size(self, node) for name, node in self.variables.items()}
            try:  # the notation of jax.export.symbolic_shape, an expression of Python
                self.sizes[str(size)] = eval(str(size), {"__builtins__": {}}, known).node
            except (NameError, TypeError):
                raise ValueError(f"ONNX export does not know sizes like {size}: expected sums of products.") from None
        return self.sizes[str(size)]


class _Size:
    """A size that nodes compute."""

    def __init__(self, graph, node):
        self.graph, self.node = graph, node

    def _with(self, kind, other):
        other = other.node if isinstance(other, _Size) else _int64(other)
        return _Size(self.graph, self.graph.add(kind, self.node, other))

    def __add__(self, other):
        return self._with("Add", other)

    def __mul__(self, other):
        return self._with("Mul", other)

    __radd__, __rmul__ = __add__, __mul__

    def __sub__(self, other):
        return self._with("Sub", other)


def _run(graph, jaxpr, consts, inputs):
    """The values of a jaxpr's results, after its equations have become nodes."""
    values = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*map(np.asarray, consts), *inputs], strict=True))

    def read(v):
        constant = isinstance(v, core.Literal)
        return np.asarray(v.val, v.aval.dtype) if constant else values[v]

    for equation in jaxpr.eqns:
        results = _translate(graph, equation, [read(v) for v in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _translate(graph, equation, inputs):
    name = equation.primitive.name
    if name == "jit":
        inner = equation.params["jaxpr"]
        return _run(graph, inner.jaxpr, inner.consts, inputs)
    if name == "scan":
        return _unrolled(graph, equation, inputs)
    if name == "dim_as_value":
        size = graph.add("Squeeze", graph.shape([equation.params["dim"]]), _int64(0))
        return [graph.add("Cast", size, to=_type(equation.outvars[0].aval))]
    static = all(isinstance(size, int) for v in equation.outvars for size in v.aval.shape)
    if static and not any(isinstance(x, str) for x in inputs):
        results = equation.primitive.bind(*inputs, **equation.params)
        return [np.asarray(x) for x in (results if equation.primitive.multiple_results else [results])]
    if name in _SAME:
        return [graph.add(_SAME[name], *inputs)]
    if name not in _RULES:
        raise ValueError(f'ONNX export does not know the primitive "{name}": {equation}')
    results = _RULES[name](graph, equation, *inputs)
    return results if equation.primitive.multiple_results else [results]


def _unrolled(graph, equation, inputs):
    """A scan as its body, over and over."""
    p, body = equation.params, equation.params["jaxpr"]
    first, last = p["num_consts"], p["num_consts"] + p["num_carry"]
    consts, carry, xs, stacks = inputs[:first], inputs[first:last], inputs[last:], []
    for i in range(p["length"]):
        slices = [
            x[i] if isinstance(x, np.ndarray) else graph.add("Gather", x, np.array(i, np.int64), axis=0) for x in xs
        ]
        results = _run(graph, body.jaxpr, body.consts, [*consts, *carry, *slices])
        carry = results[: p["num_carry"]]
        stacks.append([graph.add("Unsqueeze", y, _int64(0)) for y in results[p["num_carry"] :]])
    return [*carry, *(graph.add("Concat", *ys, axis=0) for ys in zip(*stacks, strict=True))]


def _argmax(graph, equation, x):
    (axis,) = equation.params["axes"]
    return graph.add("Cast", graph.add("ArgMax", x, axis=axis, keepdims=0), to=_type(equation.outvars[0].aval))


def _top_k(graph, equation, x):
    values = graph.add("TopK", x, _int64(equation.params["k"]), results=2, axis=-1)
    indices = graph.add("Cast", f"{values}_1", to=_type(equation.outvars[1].aval))
    return [values, indices]


def _broadcast_in_dim(graph, equation, x):
    shape = equation.outvars[0].aval.shape
    kept = equation.params["broadcast_dimensions"]
    if new := [axis for axis in range(len(shape)) if axis not in kept]:
        x = graph.add("Unsqueeze", x, np.array(new, np.int64))
    present = dict(zip(kept, equation.invars[0].aval.shape, strict=True))
    if any(present.get(axis, 1) != size for axis, size in enumerate(shape)):
        x = graph.add("Expand", x, graph.shape(shape))
    return x


def _conv(graph, equation, x, kernel):
    p = equation.params
    layout = p["dimension_numbers"]
    _expect(equation, (layout.lhs_spec, layout.rhs_spec, layout.out_spec) == ((0, 2, 1), (2, 1, 0), (0, 2, 1)))
    _expect(equation, p["feature_group_count"] == p["batch_group_count"] == 1)
    _expect(equation, p["lhs_dilation"] == p["rhs_dilation"] == (1,))
    y = graph.add(
        "Conv",
        graph.add("Transpose", x, perm=(0, 2, 1)),
        kernel.transpose(2, 1, 0),
        pads=[int(n) for n in p["padding"][0]],
        strides=p["window_strides"],
    )
    return graph.add("Transpose", y, perm=(0, 2, 1))


def _dot_general(graph, equation, x, y):
    contracted, batch = equation.params["dimension_numbers"]
    _expect(equation, batch == ((), ()) and contracted == ((equation.invars[0].aval.ndim - 1,), (0,)) and y.ndim == 2)
    return graph.add("MatMul", x, y)


def _gather(graph, equation, x, indices):
    """Either one slice at a constant place, or whole entries along one axis."""
    numbers, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    axes, collapsed = np.array(numbers.start_index_map, np.int64), numbers.collapsed_slice_dims
    if isinstance(indices, np.ndarray) and indices.ndim == 1:
        ends = graph.shape([int(start) + sizes[axis] for start, axis in zip(indices, axes, strict=True)])
        y = graph.add("Slice", x, indices.astype(np.int64), ends, axes)
        return graph.add("Squeeze", y, np.array(collapsed, np.int64)) if collapsed else y
    (axis,), rank, index_rank = axes, equation.outvars[0].aval.ndim, equation.invars[1].aval.ndim - 1
    _expect(equation, collapsed == (axis,) and numbers.operand_batching_dims == ())
    _expect(equation, numbers.offset_dims == (*range(axis), *range(axis + index_rank, rank)))
    return graph.add("Gather", x, graph.add("Squeeze", indices, _int64(-1)), axis=int(axis))


def _pad(graph, equation, x, value):
    before, after, inside = zip(*equation.params["padding_config"], strict=True)
    _expect(equation, not any(inside) and min(*before, *after) >= 0)
    return graph.add("Pad", x, np.array([*before, *after], np.int64), value)


def _iota(graph, equation):
    _expect(equation, len(equation.params["shape"]) == 1)
    zero, one = np.array(0, np.int64), np.array(1, np.int64)
    size = graph.add("Squeeze", graph.shape(equation.params["shape"]), _int64(0))
    return graph.add("Cast", graph.add("Range", zero, size, one), to=_type(equation.outvars[0].aval))


def _slice(graph, equation, x):
    p, axes = equation.params, np.arange(equation.invars[0].aval.ndim)
    strides = np.array(p["strides"] or [1] * len(axes), np.int64)
    return graph.add("Slice", x, np.array(p["start_indices"], np.int64), graph.shape(p["limit_indices"]), axes, strides)


def _stack(graph, equation, *xs):
    axis = equation.params["axis"]
    return graph.add("Concat", *(graph.add("Unsqueeze", x, _int64(axis)) for x in xs), axis=axis)


_RULES: dict[str, Callable] = {
    "argmax": _argmax,
    "broadcast_in_dim": _broadcast_in_dim,
    "concatenate": lambda graph, e, *xs: graph.add("Concat", *xs, axis=e.params["dimension"]),
    "conv_general_dilated": _conv,
    "convert_element_type": lambda graph, e, x: graph.add("Cast", x, to=_type(e.outvars[0].aval)),
    "dot_general": _dot_general,
    "expm1": lambda graph, e, x: graph.add("Sub", graph.add("Exp", x), np.float32(1)),
    "gather": _gather,
    "integer_pow": lambda graph, e, x: graph.add("Pow", x, np.array(e.params["y"], np.int64)),
    "iota": _iota,
    "ne": lambda graph, e, x, y: graph.add("Not", graph.add("Equal", x, y)),
    "pad": _pad,
    "reduce_max": lambda graph, e, x: graph.add("ReduceMax", x, np.array(e.params["axes"], np.int64), keepdims=0),
    "reduce_min": lambda graph, e, x: graph.add("ReduceMin", x, np.array(e.params["axes"], np.int64), keepdims=0),
    "reduce_sum": lambda graph, e, x: graph.add("ReduceSum", x, np.array(e.params["axes"], np.int64), keepdims=0),
    "rem": lambda graph, e, x, y: graph.add("Mod", x, y, fmod=1),  # the sign of x, as in C
    "reshape": lambda graph, e, x: graph.add("Reshape", x, graph.shape(e.params["new_sizes"])),
    "rsqrt": lambda graph, e, x: graph.add("Reciprocal", graph.add("Sqrt", x)),
    "select_n": lambda graph, e, which, no, yes: graph.add("Where", which, yes, no),
    "slice": _slice,
    "stack": _stack,
    "stop_gradient": lambda graph, e, x: x,
    "square": lambda graph, e, x: graph.add("Mul", x, x),
    "squeeze": lambda graph, e, x: graph.add("Squeeze", x, np.array(e.params["dimensions"], np.int64)),
    "top_k": _top_k,
    "transpose": lambda graph, e, x: graph.add("Transpose", x, perm=e.params["permutation"]),
}


def _expect(equation, condition):
    if not condition:
        raise ValueError(f"ONNX export does not know this use of a primitive: {equation}")


def _linear(size):
    """A symbolic size `slope * variable + offset` as (variable, slope, offset)."""
    text = str(size)  # the notation of jax.export.symbolic_shape, an expression of Python
    names = {name for name in compile(text, "size", "eval").co_names if name not in ("floordiv", "mod", "max", "min")}
    values = [eval(text, {"__builtins__": {}}, dict.fromkeys(names, n)) for n in range(3)] if len(names) == 1 else []
    if len(values) < 3 or values[2] - values[1] != values[1] - values[0]:
        raise ValueError(
            f"ONNX export does not know sizes like {text}: expected a multiple of one variable plus a number."
        )
    return names.pop(), values[1] - values[0], values[0]


def _signature(name, array):
    sizes = [size if isinstance(size, int) else str(size) for size in array.shape]
    return helper.make_tensor_value_info(name, _type(array), sizes)


def _type(array):
    return helper.np_dtype_to_tensor_dtype(_numpy_type(array))


def _numpy_type(array):
    """Float32 for bfloat16, in which the search for codes has whole numbers that both hold: runtimes rarely multiply it."""
    dtype = np.asarray(array).dtype if isinstance(array, int | float) else np.dtype(array.dtype)
    return np.dtype(np.float32) if dtype.name == "bfloat16" else dtype


def _int64(value):
    return np.array([value], np.int64)
