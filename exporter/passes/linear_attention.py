"""LinearAttention as ONNX Runtime's kernel, or spelled in plain operators: chunks of matrix products, or one token.

With a chunk's running sum of decays c, decay from token j to token i is D_ij = exp(c_i - c_j), and the recurrence over
a chunk of tokens that starts with state S is, as products of matrices (Yang et al. 2024, Gated Delta Networks, section
3.2; without the delta rule Dao and Gu 2024, section 6)::

    values' = X (b v) - X (b k exp(c)) S,   X = (1 + tril(b k k^T D, -1))^-1;   just v without the delta rule
    output  = (q k^T D) values' + (q exp(c)) S
    S'      = exp(c_last) S + (k exp(c_last - c))^T values'

All but the two products with S are computed for all chunks at once; a Scan carries S over the chunks. The inverse is
built block by block, sizes doubling: that of [[P, 0], [R, Q]] is [[P^-1, 0], [-Q^-1 R P^-1, Q^-1]], which is as stable
as substitution, where powers of the matrix would not be.

Requires: LinearAttention with ``scale`` 1, as many key heads as query heads, ``update_rule`` gated or gated_delta, and
    a past state.
Ensures: none is left.
"""

from __future__ import annotations

from typing import Any
from zlib import crc32

import numpy as np
import onnx_ir as ir

from kvparity.exporter.passes.conditions import graph_pass, lacks

__all__ = ["CHUNK", "Nodes", "put_in_place", "spell_linear_attention", "use_runtime_kernel"]

CHUNK = 64  # tokens of a chunk, as in transformers
_CHUNK_BY_COLUMN = 16  # the same where each column of a key has a decay of its own: D is then a matrix per column
_FAR = -1e9  # exp of it is 0


@graph_pass(ensures=[lacks("LinearAttention")])
def spell_linear_attention(model: ir.Model, few: bool) -> None:
    """Spell it in plain operators.

    Args:
        model: The graph, lowered to the dtypes of the bundle.
        few: Whether calls have mostly one token: one is then computed without chunks, behind an If.
    """
    for node in [node for node in model.graph if node.op_type == "LinearAttention"]:
        rule = _Rule(model, node)
        main = Nodes(node, "")
        if rule.tokens == 1:
            output, state = rule.one(main)
        elif few:
            one = main("Equal", main("Shape", node.inputs[0], start=1, end=2), rule.ints(1))
            branches = {"then_branch": _branch(node, "one", rule.one), "else_branch": _branch(node, "many", rule.many)}
            output, state = main.several("If", 2, main("Squeeze", one), **branches)
        else:
            output, state = rule.many(main)
        put_in_place(model, node, main, output, state)


def put_in_place(model: ir.Model, node: ir.Node, made: Nodes, *outputs: Any) -> None:
    """Put nodes in the place of one, whose outputs' names, shapes and metadata they take over."""
    model.graph.insert_before(node, made.nodes)
    for old, new in zip(node.outputs, outputs, strict=True):
        new.name, new.type, new.shape = old.name, old.type, old.shape
        old.name = None
        new.metadata_props.update(old.metadata_props)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
    model.graph.remove(node, safe=True)


@graph_pass()
def use_runtime_kernel(model: ir.Model) -> None:
    """Make every LinearAttention ONNX Runtime's own, which has a kernel where the standard one is a function."""
    for node in model.graph:
        if node.op_type == "LinearAttention":
            node.domain, node.version = "com.microsoft", None
            model.opset_imports["com.microsoft"] = 1


class Nodes:
    """Makes nodes in order, with names that are unique in the graph."""

    def __init__(self, near: ir.Node, place: str) -> None:
        self.nodes: list[ir.Node] = []
        self._near, self._prefix = near, f"{near.outputs[0].name}{place and '/'}{place}"

    def __call__(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> Any:
        """Make a node; its output."""
        return self.several(op_type, 1, *inputs, **attributes)[0]

    def several(self, op_type: str, count: int, *inputs: ir.Value | None, **attributes: Any) -> Any:
        """Make a node of several outputs; these."""
        name = f"{self._prefix}/{op_type}_{len(self.nodes)}"
        node = ir.node(op_type, list(inputs), attributes=attributes, num_outputs=count, name=name)
        node.metadata_props.update(self._near.metadata_props)
        for index, output in enumerate(node.outputs):
            output.name = f"{name}.{index}"
        self.nodes.append(node)
        return node.outputs


def _branch(near: ir.Node, place: str, write: Any) -> ir.Graph:
    nodes = Nodes(near, place)
    outputs = write(nodes)
    return ir.Graph([], outputs, nodes=nodes.nodes, name=place)


class _Rule:
    """One LinearAttention: its inputs, packed (batch, sequence, heads x size), and the constants that it needs."""

    def __init__(self, model: ir.Model, node: ir.Node) -> None:
        self._graph = model.graph
        self._query, self._key, self._value, self._state, self._decay, self._beta = [*node.inputs, None][:6]
        self._heads = node.attributes["q_num_heads"].as_int()
        self._dtype = np.float64 if node.outputs[1].dtype == ir.DataType.DOUBLE else np.float32
        assert self._decay is not None
        assert self._decay.shape is not None
        self._by_column = self._decay.shape[2] != self._heads
        self._chunk = _CHUNK_BY_COLUMN if self._by_column else CHUNK
        assert self._query is not None
        size = self._query.shape[1] if self._query.shape is not None else None
        self.tokens = size if isinstance(size, int) else None  # where they are known in advance
        if self.tokens is not None and self.tokens <= self._chunk:
            self._chunk = self.tokens

    def ints(self, *values: int) -> ir.Value:
        """An int64 vector."""
        return self._constant(np.asarray(values, np.int64))

    def one(self, b: Nodes) -> tuple[ir.Value, ir.Value]:
        """One token: (output, state)."""
        query, key, value, decay, beta = (self._parted(b, x) for x in self._inputs)
        up = b("Transpose", key, perm=[0, 1, 3, 2])
        kept = b("Exp", b("Transpose", decay, perm=[0, 1, 3, 2]))
        state = b("Mul", self._state, kept)
        if beta is not None:
            value = b("Mul", b("Sub", value, b("MatMul", key, state)), beta)
        state = b("Add", state, b("Mul", up, value))
        output = b("Transpose", b("MatMul", query, state), perm=[0, 2, 1, 3])
        return b("Reshape", output, self.ints(0, 0, -1)), state

    def many(self, b: Nodes) -> tuple[ir.Value, ir.Value]:
        """Any number of tokens: (output, state)."""
        tokens = b("Shape", self._query, start=1, end=2) if self.tokens is None else self.ints(self.tokens)
        size = self.ints(self._chunk)
        if whole := self.tokens == self._chunk:
            shape = self.ints(0, 1, self._chunk, self._heads, -1)
        else:
            chunks = b("Div", b("Add", tokens, self.ints(self._chunk - 1)), size)
            padded = b("Mul", chunks, size)
            pads = b("Concat", self.ints(0, 0, 0, 0), b("Sub", padded, tokens), self.ints(0), axis=0)
            shape = b("Concat", self.ints(0), chunks, self.ints(self._chunk, self._heads, -1), axis=0)

        def cut(x: Any) -> Any:
            """(chunks, batch, heads, chunk, size)."""
            if x is None:
                return None
            return b("Transpose", b("Reshape", x if whole else b("Pad", x, pads), shape), perm=[1, 0, 3, 2, 4])

        query, key, value, decay, beta = (cut(x) for x in self._inputs)
        total = b("MatMul", self._lower(0), decay)  # c, summed from the chunk's first token
        last = b("Slice", total, self.ints(self._chunk - 1), self.ints(self._chunk), self.ints(3))
        grown = b("Exp", total)
        intra, inner = self._products(b, query, key, decay, total)
        rest = b("MatMul", self._constant(np.triu(np.ones((self._chunk, self._chunk), self._dtype), 1)), decay)
        out = b("Transpose", b("Mul", key, b("Exp", rest)), perm=[0, 1, 2, 4, 3])
        kept = b("Transpose", b("Exp", last), perm=[0, 1, 2, 4, 3])
        states: Any
        if beta is None:
            added = b("MatMul", out, value)
            state, states = self._scan(b, [kept, added], self._gated)
        else:
            inverse = self._inverse(b, b("Mul", inner, beta))
            value = b("MatMul", inverse, b("Mul", value, beta))
            reads = b("MatMul", inverse, b("Mul", b("Mul", key, beta), grown))
            state, states, value = self._scan(b, [kept, out, value, reads], self._delta)
        output = b("Add", b("MatMul", intra, value), b("MatMul", b("Mul", query, grown), states))
        output = b("Transpose", output, perm=[1, 0, 3, 2, 4])
        if whole:
            return b("Reshape", output, self.ints(0, self._chunk, -1)), state
        output = b("Reshape", output, b("Concat", self.ints(0), padded, self.ints(-1), axis=0))
        return b("Slice", output, self.ints(0), tokens, self.ints(1)), state

    @property
    def _inputs(self) -> tuple[ir.Value | None, ...]:
        return self._query, self._key, self._value, self._decay, self._beta

    def _parted(self, b: Nodes, packed: ir.Value | None) -> Any:
        """(batch, heads, 1, size) of one token."""
        return None if packed is None else b("Reshape", packed, self.ints(0, self._heads, 1, -1))

    def _products(self, b: Nodes, query: Any, key: Any, decay: Any, total: Any) -> tuple[Any, Any]:
        """(q k^T D, tril(k k^T D, -1)), each (chunks, batch, heads, chunk, chunk).

        The sums of decays from one token to another are made of their own terms: differences of sums from the chunk's
        first token lose digits where those are large.
        """
        seen = self._constant(np.tril(np.ones((self._chunk, self._chunk), np.bool_)))
        far = self._constant(np.asarray(_FAR, self._dtype))
        strict = self._lower(-1)
        if not self._by_column:
            apart = b("MatMul", self._lower(0), b("Mul", decay, strict))
            decay = b("Exp", b("Where", seen, apart, far))
            across = b("Transpose", key, perm=[0, 1, 2, 4, 3])
            own = b("Mul", b("MatMul", key, across), b("Mul", decay, strict))
            return b("Mul", b("MatMul", query, across), decay), own
        rows, columns = self.ints(4), self.ints(3)
        apart = b("Sub", b("Unsqueeze", total, rows), b("Unsqueeze", total, columns))
        decay = b("Exp", b("Where", b("Unsqueeze", seen, self.ints(2)), apart, far))
        across = b("Mul", b("Unsqueeze", key, columns), decay)
        query, key = b("Unsqueeze", query, rows), b("Unsqueeze", key, rows)
        axis = self.ints(-1)
        intra = b("ReduceSum", b("Mul", query, across), axis, keepdims=0)
        return intra, b("Mul", b("ReduceSum", b("Mul", key, across), axis, keepdims=0), strict)

    def _inverse(self, b: Nodes, lower: Any) -> Any:
        """(1 + lower)^-1 of a strictly lower triangular matrix, from diagonal blocks of one row to the whole."""
        size, half = self._chunk, 1
        inverse = None
        while half < size:
            row, column = np.arange(size)[:, None], np.arange(size)[None, :]
            below = (row // (2 * half) == column // (2 * half)) & (row // half > column // half)
            block = b("Mul", lower, self._constant(below.astype(self._dtype)))
            if inverse is None:
                inverse = b("Sub", self._constant(np.eye(size, dtype=self._dtype)), block)
            else:
                inverse = b("Sub", inverse, b("MatMul", b("MatMul", inverse, block), inverse))
            half *= 2
        return inverse

    def _scan(self, b: Nodes, inputs: list[Any], write: Any) -> Any:
        """The state after all chunks, before each of them, and what else ``write`` collects."""
        if self.tokens == self._chunk:  # one chunk
            after, *made = write(b, self._state, *(b("Squeeze", x, self.ints(0)) for x in inputs))
            return after, *(b("Unsqueeze", x, self.ints(0)) for x in (self._state, *made))
        place = f"{b.nodes[-1].name}/scan"
        state = ir.Value(name=f"{place}.state")
        parts = [ir.Value(name=f"{place}.{index}") for index in range(len(inputs))]
        body = Nodes(b.nodes[-1], "scan")
        before = body("Identity", state)
        made = write(body, state, *parts)
        graph = ir.Graph([state, *parts], [made[0], before, *made[1:]], nodes=body.nodes, name="chunk")
        return b.several("Scan", 1 + len(made), self._state, *inputs, body=graph, num_scan_inputs=len(inputs))

    def _gated(self, b: Nodes, state: Any, kept: Any, added: Any) -> tuple[Any, ...]:
        return (b("Add", b("Mul", state, kept), added),)

    def _delta(self, b: Nodes, state: Any, kept: Any, out: Any, value: Any, reads: Any) -> tuple[Any, ...]:
        value = b("Sub", value, b("MatMul", reads, state))
        return b("Add", b("Mul", state, kept), b("MatMul", out, value)), value

    def _lower(self, diagonal: int) -> ir.Value:
        return self._constant(np.tril(np.ones((self._chunk, self._chunk), self._dtype), diagonal))

    def _constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        """An initializer of the graph, also seen from inside branches; equal ones are one."""
        kind = f"{array.dtype.name}.{'x'.join(map(str, array.shape))}.{crc32(array.tobytes()):x}"
        name = f"linear_attention.{kind}"
        if name not in self._graph.initializers:
            tensor = ir.tensor(array, name=name)
            shape, dtype = ir.Shape(array.shape), ir.TensorType(tensor.dtype)
            self._graph.register_initializer(ir.Value(name=name, const_value=tensor, shape=shape, type=dtype))
        return self._graph.initializers[name]
