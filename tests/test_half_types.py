"""float16 bundles are judged by what PyTorch's own float16 rounds; bfloat16 is told to be unavailable where it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.spec import DECODE, FLOAT64_CONSTANTS, PREFILL, ExportOptions
from kvparity.runners.base import RunnerSpec
from kvparity.runners.compare.judge import JudgeOptions, judge
from tests.families import FAMILIES, make_config, save_checkpoint

torch = pytest.importorskip("torch", reason="the exporter's extra is not installed")

ORT = (RunnerSpec("ort"),)
EXACT = JudgeOptions(ORT, cases=("prefill-8", "decode-far"), tol="auto", exact=True, allow_modified=True)


def exported(name: str, dtype: str, folder: Path) -> Bundle:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from kvparity.runners.reference.record import record_cases

    family = next(family for family in FAMILIES if family.name == name)
    checkpoint = resolve(str(save_checkpoint(make_config(family), folder / "hf")))
    options = ExportOptions(dtype=dtype)  # type: ignore[arg-type]
    return export(checkpoint, folder / "bundle", options, record=record_cases, limit=24, in_process=True)


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Softcaps, alternating windows, norms in float32."""
    return exported("gemma2", "float16", tmp_path_factory.mktemp("gemma2"))


def test_float16_is_within_the_budget_of_pytorch_in_float16_and_a_fault_is_not(gemma2: Bundle, tmp_path: Path) -> None:
    """A model with softcaps; the twin is a weight of the bundle that is off by a half."""
    bundle = Bundle.open(Path(shutil.copytree(gemma2.root, tmp_path / "bundle")))
    assert 1e-4 < bundle.manifest.noise["logits"] < 0.1, "PyTorch's own float16 error, not float32's"
    options = JudgeOptions(ORT, tol="auto")
    assert judge(bundle, options).verdict == "match"
    place = bundle.root / bundle.manifest.weights[0].path
    from kvparity.exporter.checkpoint.source import read_safetensors_header

    norm = read_safetensors_header(place)["model.norm.weight"]
    with place.open("r+b") as stream:
        stream.seek(norm.offset)
        values = np.fromfile(stream, np.float16, 32)
        stream.seek(norm.offset)
        (values + np.float16(0.5)).tofile(stream)
    assert judge(bundle, options).verdict == "mismatch"


def test_a_float16_graph_is_exact_since_its_constants_keep_their_digits(gemma2: Bundle, tmp_path: Path) -> None:
    """The twin's graph says nothing of digits: float16 rounds 0.0714 by 2e-5."""
    assert judge(gemma2, EXACT).verdict == "match"
    import onnx

    copy = Path(shutil.copytree(gemma2.root, tmp_path / "bundle"))
    for kind in (PREFILL, DECODE):
        model = onnx.load(copy / f"{kind}.onnx", load_external_data=False)
        kept = [entry for entry in model.metadata_props if entry.key == FLOAT64_CONSTANTS]
        assert len(json.loads(kept[0].value)) >= 3
        model.metadata_props.remove(kept[0])
        onnx.save(model, copy / f"{kind}.onnx")
    assert judge(Bundle.open(copy, allow_modified=True), EXACT).verdict == "mismatch"


@pytest.mark.parametrize("name", ["gemma4 26B-A4B-shaped", "starcoder2"])
def test_experts_and_layer_norms_in_float16_match_and_are_exact(name: str, tmp_path: Path) -> None:
    """A router multiplies float32 probabilities by a float16 scale; torch's layer norm adds up in float32."""
    bundle = exported(name, "float16", tmp_path)
    assert judge(bundle, EXACT).verdict == "match"
    expected = kinds_in_pytorch(bundle)
    assert kinds_in_graph(bundle.graph_path(DECODE), "Softmax") == expected["_softmax"]
    assert kinds_in_graph(bundle.graph_path(DECODE), "ReduceMean") == {"float32"}


def test_norms_and_softmax_stay_float32_where_transformers_keeps_them_so(gemma2: Bundle, tmp_path: Path) -> None:
    """Expected is what PyTorch's own float16 model hands to these operators; the twin's graph lost its casts."""
    expected = kinds_in_pytorch(gemma2)
    assert expected == {"_softmax": {"float32"}, "mean": {"float32"}}
    import onnx_ir as ir

    for kind in (PREFILL, DECODE):
        path = gemma2.graph_path(kind)
        assert kinds_in_graph(path, "Softmax") == expected["_softmax"]
        assert kinds_in_graph(path, "ReduceMean") == expected["mean"]
        model = ir.load(path)
        for node in list(model.graph):
            if node.op_type == "Cast" and {use.node.op_type for use in node.outputs[0].uses()} == {"Softmax"}:
                assert node.inputs[0] is not None
                node.outputs[0].replace_all_uses_with(node.inputs[0])
                model.graph.remove(node, safe=True)
        ir.save(model, tmp_path / path.name)
        assert kinds_in_graph(tmp_path / path.name, "Softmax") == {"float16"}


def kinds_in_graph(path: Path, *op_types: str) -> set[str]:
    """dtypes that operators of a graph read first."""
    import onnx
    import onnx_ir as ir

    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False))
    values = [*model.graph.value_info, *model.graph.input]
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    found = {kinds[node.input[0]] for node in model.graph.node if node.op_type in op_types}
    return {ir.DataType(kind).numpy().name for kind in found}


def kinds_in_pytorch(bundle: Bundle) -> dict[str, set[str]]:
    """dtypes that PyTorch's model, in the bundle's own, hands to softmax and mean."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from kvparity.runners.engines.torch_eager import reference_session

    found: dict[str, set[str]] = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func._schema.name.split("::")[1]
            if name in ("_softmax", "mean"):
                found.setdefault(name, set()).add(str(args[0].dtype).removeprefix("torch."))
            return func(*args, **(kwargs or {}))

    case = bundle.case("prefill-8")
    with Watch():
        reference_session(bundle, bundle.options.dtype).run(PREFILL, case.inputs(next(iter(case.steps()))))
    return found


def test_an_engine_without_bfloat16_kernels_is_an_error_that_names_the_operator_and_no_pass(tmp_path: Path) -> None:
    """The graph itself is exact all the same."""
    report = judge(exported("gemma2", "bfloat16", tmp_path), EXACT)
    assert report.verdict == "error"
    assert {"NOT_IMPLEMENTED" in record.message for record in report.cases if record.question == "gate"} == {True}
    assert {record.verdict for record in report.cases if record.question == "exact"} == {"match"}


def test_a_cast_like_is_resolved_where_the_trace_leaves_dtypes_out() -> None:
    """Exponentials and sums carry no dtype in torch's translation of xIELU (Apertus)."""
    import onnx_ir as ir

    from kvparity.exporter.passes.fold_constants import drop_casts

    x, one = ir.Value(name="x", type=ir.TensorType(ir.DataType.DOUBLE)), ir.Value(name="one")
    exp = ir.node("Exp", [x])
    like = ir.node("CastLike", [one, exp.outputs[0]])
    graph = ir.Graph([x, one], [like.outputs[0]], nodes=[exp, like], opset_imports={"": 18})
    drop_casts(ir.Model(graph, ir_version=8))
    assert [node.op_type for node in graph] == ["Exp", "Cast"]
    assert graph.node(1).attributes["to"].as_int() == ir.DataType.DOUBLE
