"""Float64 evaluation of the exported graph: says whether the graph itself is right, apart from any engine.

Every float32 and float16 value of the graph becomes float64; constants get back the digits that the float32 graph had
to round (kept in its metadata), provided that they still round to what the graph holds. ONNX Runtime runs the result
where it has double kernels, onnx's ReferenceEvaluator otherwise.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError, lines_of
from kvparity.exporter.contract.files import scratch_folder
from kvparity.exporter.contract.graph_file import load_graph_file
from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS, GraphKind
from kvparity.runners.base import Array, RunnerInfo, RunnerSpec, Session, need, only
from kvparity.runners.engines._wide import folder, wide_weight
from kvparity.runners.isolation.limits import settings
from kvparity.runners.isolation.process import open_isolated

__all__ = ["INSTALL", "ExactSession", "bundle_graph", "describe", "open_graph", "open_model", "open_session", "widen"]

INSTALL = "pip install onnx onnx-ir onnxruntime"
TAKES = "the dynamic and static layouts, every profile, evaluated in float64"
_EXTERNAL = "session.model_external_initializers_file_folder_path"
Evaluate = Callable[[Mapping[str, Array]], list[Array]]


def describe() -> RunnerInfo:
    """Versions of what evaluates the widened graph."""
    settings = {"onnx": need("onnx", INSTALL), "onnx-ir": need("onnx-ir", INSTALL)}
    return RunnerInfo("exact", need("onnxruntime", INSTALL), settings)


def open_session(bundle: Bundle, options: Mapping[str, str]) -> ExactSession:
    """Open both graphs in float64; setting ``with`` is ``ort`` (default) or ``onnx``."""
    only(options, "with")
    return ExactSession(bundle, options.get("with", "ort"))


class ExactSession:
    """Both graphs of a bundle evaluated in float64; widened when first called."""

    def __init__(self, bundle: Bundle, evaluator: str) -> None:
        if evaluator not in ("ort", "onnx"):
            raise EngineUnavailableError(f"exact: evaluator {evaluator!r} is unknown; known are ort and onnx")
        self._bundle, self._evaluator = bundle, evaluator
        self._graphs: dict[GraphKind, Any] = {}
        self.info = RunnerInfo("exact", describe().version, {"evaluator": evaluator, "dtype": "float64"})

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run one graph once; floating-point inputs are widened, outputs are float64."""
        feeds = {
            name: array.astype(np.float64) if array.dtype.kind not in "iub" else array for name, array in inputs.items()
        }
        if graph not in self._graphs:
            self._graphs[graph] = _open(self._bundle, graph, self._evaluator)
        names, run = self._graphs[graph]
        return dict(zip(names, run(feeds), strict=True))

    def close(self) -> None:
        """Drop both graphs."""
        self._graphs.clear()


def bundle_graph(bundle: Bundle, kind: GraphKind) -> Any:
    """A graph of a bundle as an onnx_ir model; somebody else's in the ports of our contract."""
    if bundle.manifest.foreign is None:
        return load_graph_file(bundle.graph_path(kind))
    from kvparity.runners.adopt.translate import contract_graph

    return contract_graph(bundle, kind)


def _open(bundle: Bundle, graph: GraphKind, evaluator: str) -> tuple[list[str], Evaluate]:
    model = bundle_graph(bundle, graph)
    widen(model)
    return open_model(model, evaluator, f"{graph}.onnx")


def open_model(model: Any, evaluator: str, name: str) -> tuple[list[str], Evaluate]:
    """Load a model for evaluation in the dtypes that it has.

    Args:
        model: An onnx_ir model, widened already where float64 is wanted.
        evaluator: ``ort``, which falls back to onnx's own evaluator where kernels are missing, or ``onnx``.
        name: For messages.

    Returns:
        Names of its outputs, and a function from inputs by name to outputs in that order.

    Raises:
        EngineUnavailableError: ONNX Runtime refuses the model for another reason than a missing kernel.
    """
    import onnx_ir as ir

    names = [str(value.name) for value in model.graph.outputs]
    wanted = [str(value.name) for value in model.graph.inputs]
    proto = ir.to_proto(model)
    opened = _evaluator if not settings() else _elsewhere
    run = opened(proto, evaluator, name, folder())
    return names, lambda feeds: run({name: feeds[name] for name in wanted})


def open_graph(path: Path, options: Mapping[str, str]) -> Session:
    """One graph as :func:`open_model` takes it, from a file: what a process with limits runs."""
    import onnx

    return _Graph(_evaluator(onnx.load(str(path)), options["with"], options["name"], options["weights"]))


class _Graph:
    """A session of one graph, whose outputs are numbered."""

    def __init__(self, run: Evaluate) -> None:
        self._run, self.info = run, describe()

    def run(self, graph: GraphKind, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return {str(index): np.asarray(array) for index, array in enumerate(self._run(inputs))}

    def close(self) -> None:
        """Nothing is kept."""


def _elsewhere(proto: Any, evaluator: str, name: str, weights: str) -> Evaluate:
    """The evaluation in a process of its own, within the limits that are set."""
    place = scratch_folder("kvparity-graph-")
    path = Path(place.name) / "graph.onnx"
    path.write_bytes(proto.SerializeToString())
    options = {**settings(), "with": evaluator, "name": name, "weights": weights}
    session = open_isolated(path, RunnerSpec("exact", options), place)
    return lambda feeds: list(session.run("decode", feeds).values())


def _evaluator(proto: Any, evaluator: str, name: str, weights: str) -> Evaluate:
    names = [value.name for value in proto.graph.output]
    if evaluator == "ort":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.add_session_config_entry(_EXTERNAL, weights)
        try:
            session = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
            return lambda feeds: session.run(names, dict(feeds))
        except Exception as error:
            too_large = "larger than" in str(error) or "Failed to serialize" in str(error)  # 2 GB, either side's words
            if "NOT_IMPLEMENTED" not in str(error) and not too_large:
                raise EngineUnavailableError(
                    f"exact: {name} has no float64 evaluation in ONNX Runtime: {lines_of(error)[0]}"
                ) from error
    known = {"", "ai.onnx", *(function.domain for function in proto.functions)}
    custom = next((node for node in proto.graph.node if node.domain not in known), None)
    if custom is not None:
        reason = "has no float64 evaluation; the budget in float32 judges it"
        raise EngineUnavailableError(f"exact: {name}: {custom.op_type} of {custom.domain} {reason}")
    from onnx.reference import ReferenceEvaluator

    reference = ReferenceEvaluator(proto, new_ops=[_erf(), _gather_elements()])
    return lambda feeds: reference.run(names, dict(feeds))


def _erf() -> Any:
    """Erf in its input's dtype: ONNX Runtime has none in float64, and onnx's own rounds to float32 (8e-7 on logits)."""
    from onnx.reference.op_run import OpRun

    class Erf(OpRun):
        def _run(self, x: npt.NDArray[Any]) -> tuple[npt.NDArray[Any]]:
            return (np.vectorize(math.erf, otypes=[x.dtype])(x),)

    return Erf


def _gather_elements() -> Any:
    """GatherElements: onnx's own takes a whole column where an axis has one entry, and fails beyond 32 entries."""
    from onnx.reference.op_run import OpRun

    class GatherElements(OpRun):
        def _run(
            self, data: npt.NDArray[Any], indices: npt.NDArray[Any], axis: int | None = None
        ) -> tuple[npt.NDArray[Any]]:
            places: list[Any] = list(np.indices(indices.shape, sparse=True))
            places[axis or 0] = indices
            return (data[tuple(places)],)

    return GatherElements


def widen(model: Any) -> None:
    """Turn every floating-point value of an onnx_ir model into float64, in place.

    A cast to half precision in a graph that holds none is a fault, not a dtype, and stays. Operators that have no
    true float64 evaluation are spelled in plain ones (:mod:`runners.engines._spell`).

    Args:
        model: A graph of a bundle; external weights are read.
    """
    import onnx_ir as ir

    from kvparity.runners.engines._spell import spell_out

    half = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}
    given = {value.dtype for value in [*model.graph.inputs, *model.graph.initializers.values()]}
    narrow = {ir.DataType.FLOAT, *half} if given & half else {ir.DataType.FLOAT}
    kept = json.loads(model.metadata_props.get(FLOAT64_CONSTANTS, "{}"))
    graph = model.graph
    for name, value in graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.dtype in narrow:
            wide = None if name in kept else wide_weight(tensor, name)
            if wide is None:
                wide = ir.tensor(_wide(tensor.numpy(), kept.get(name)), name=name)
            value.const_value = wide
    values = [*graph.inputs, *graph.initializers.values()]
    for node in graph:
        values += node.outputs
        for attribute in list(node.attributes.values()):
            if attribute.name in ("to", "dtype") and attribute.type == ir.AttributeType.INT:
                if ir.DataType(attribute.as_int()) in narrow:
                    node.attributes[attribute.name] = ir.AttrInt64(attribute.name, int(ir.DataType.DOUBLE))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in narrow:
                wide = _wide(attribute.as_tensor().numpy(), None)
                node.attributes[attribute.name] = ir.AttrTensor(attribute.name, ir.tensor(wide))
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                del node.attributes[attribute.name]
                node.attributes["value"] = ir.AttrTensor("value", ir.tensor(np.asarray(attribute.value, np.float64)))
    for value in values:
        if value.dtype in narrow:
            value.dtype = ir.DataType.DOUBLE
    spell_out(model)


def _wide(array: npt.NDArray[Any], digits: list[str] | None) -> npt.NDArray[np.float64]:
    wide = np.asarray(array).astype(np.float64)
    if digits is not None and len(digits) == wide.size:
        exact = np.asarray([float.fromhex(text) for text in digits], np.float64).reshape(wide.shape)
        if np.array_equal(exact.astype(array.dtype), np.asarray(array)):
            return exact
    return wide
