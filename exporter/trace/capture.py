"""Traces one graph on fake weights: (checkpoint, options) -> onnx_ir.Model with named ports, weights still absent."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from typing import Any

import onnx_ir as ir
import torch
from torch import nn

from kvparity.exporter.contract.errors import ExportError
from kvparity.exporter.contract.quiet import quiet_libraries
from kvparity.exporter.contract.spec import ExportOptions, GraphSpec, ModelSpec
from kvparity.exporter.model.decoder import NO_POSITIONS, Decoder, add_probes
from kvparity.exporter.model.experts import choose_experts
from kvparity.exporter.model.rope import follow_length, hook_tables
from kvparity.exporter.passes.captured import Captured, name_ports
from kvparity.exporter.trace.examples import make_examples
from kvparity.exporter.trace.fx_normalise import fold_scalars, normalise
from kvparity.exporter.trace.in_place_operators import UnsupportedError
from kvparity.exporter.trace.onnx_translations import translation_table
from kvparity.exporter.trace.record.private_names import missing_names

__all__ = ["capture"]

TORCHLIB_OPSET = 18  # opset of torch's own translations
_PREFIX = "model."  # the traced wrapper holds transformers' model as its attribute `model`


def capture(model: Any, spec: ModelSpec, graph: GraphSpec, options: ExportOptions) -> Captured:
    """Trace one graph.

    Args:
        model: A meta model (parameters on the meta device); it is turned into a fake model unusable afterwards.
        spec: Its description.
        graph: The ports wanted.
        options: How to export; float32 bundles are traced in float64, so that constants keep their digits.

    Raises:
        ExportError: torch.export or the ONNX translation refused the model; the first reason is quoted.
    """
    lift = options.dtype == "float32"
    dtype = torch.float64 if lift else getattr(torch, options.dtype)
    choose_experts(model, graph.kind)
    follow_length(model)
    mode, buffers = _make_fake(model, dtype)
    add_probes(model, spec.layers)
    hook_tables(model)
    decoder = Decoder(model, spec, options, lift=lift).eval()
    try:
        with _quiet(), _default_dtype(dtype), torch.no_grad():
            try:
                onnx, tracer = _trace(decoder, graph, mode, options, spec)
            except ExportError:
                raise
            except Exception:
                if options.layout != "dynamic" or decoder.bounded:
                    raise
                decoder.bounded = True  # it may cut masks or biases out of tables as long as its positions
                onnx, tracer = _trace(decoder, graph, mode, options, spec)
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(f"{spec.model_type}: the {graph.kind} graph cannot be traced ({_reason(error)})") from error
    name_ports(onnx, graph)
    weights = _name_weights(onnx, model, buffers)
    return Captured(onnx, graph, weights, lift, options, tracer)


def _trace(
    decoder: Decoder, graph: GraphSpec, mode: Any, options: ExportOptions, spec: ModelSpec
) -> tuple[ir.Model, str]:
    """ONNX by the quick tracer (``trace.record``), or by torch.export where that does not apply; and which of them."""
    dtype = torch.float64 if decoder.lift else getattr(torch, options.dtype)
    with mode:
        examples = make_examples(graph, spec, dtype, bounded=decoder.bounded)
    missing = missing_names()
    if missing:
        model = _export(decoder, examples[0], graph, mode, options, spec, directly=False)
        return model, f"torch.export, because torch {torch.__version__} has no {missing[0]}"
    buffers = {name: module._buffers.copy() for name, module in decoder.named_modules()}
    try:
        return _record(decoder, examples, mode, options, spec), "recording"
    except Exception as error:  # whatever it is, torch.export decides what is refused and says why
        for name, module in decoder.named_modules():
            module._buffers.update(buffers[name])
        why = f"torch.export, because {_reason(error)}"
    return _export(decoder, examples[0], graph, mode, options, spec), why


def _record(
    decoder: Decoder, examples: list[dict[str, torch.Tensor]], mode: Any, options: ExportOptions, spec: ModelSpec
) -> ir.Model:
    """ONNX of what the module calls."""
    from kvparity.exporter.trace.record.program import record

    program = record(decoder, examples, mode)
    _check_positions(program, spec)
    fold_scalars(program)
    with program.shapes:
        return _translate_directly(program, translation_table(options.profile))


def _export(
    decoder: Decoder,
    inputs: dict[str, torch.Tensor],
    graph: GraphSpec,
    mode: Any,
    options: ExportOptions,
    spec: ModelSpec,
    directly: bool = True,
) -> ir.Model:
    """ONNX of a trace with symbolic sizes, whose arithmetic takes several times as long as everything else."""
    shapes = {
        port.name: {axis: torch.export.Dim.DYNAMIC for axis, dim in enumerate(port.shape) if isinstance(dim, str)}
        for port in graph.inputs
    }
    with _sizes_may_be_one(), _without_extras():
        with mode:
            program = torch.export.export(decoder, (inputs,), dynamic_shapes=(shapes,), strict=False)
        _check_positions(program, spec)
        return _translate(program, options, directly)


def _check_positions(program: Any, spec: ModelSpec) -> None:
    """Nothing may depend on positions that the graph does not take (see ``decoder.NO_POSITIONS``)."""
    pending, seen = [next(iter(reversed(program.graph.nodes)))], set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op == "call_function" and NO_POSITIONS in node.args:
            raise ExportError(
                f"{spec.model_type} uses positions beyond its rotary embedding, so --profile bare "
                "can't leave them out; use --profile portable"
            )
        pending += node.all_input_nodes


def _reason(error: Exception) -> str:
    """The line that says what is not supported; torch puts advice and colours before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if any("Could not guard on data" in line for line in lines):
        return "its code chooses between branches by the value of a tensor, which a graph can't"
    if isinstance(error, (KeyError, IndexError)) and str(error).isdigit():  # a cache of more layers than the config has
        return f"its code asks for layer or entry {error}, which the config has not"
    named = [line for line in lines if "No ONNX function found" in line]
    return (named or lines or [repr(error)])[0][:300]


def _translate(program: Any, options: ExportOptions, directly: bool = True) -> ir.Model:
    """ONNX of a traced program: directly where every operator has a translation, through torch's decomposition else.

    The direct way stands on private names of torch; ``directly`` says whether they are there.

    The opset is that of torch's own translations; :mod:`exporter.passes.opset` brings the graph to the one wanted.
    """
    table = translation_table(options.profile)
    fold_scalars(program)
    with contextlib.suppress(UnsupportedError, torch.onnx.errors.OnnxExporterError):
        if directly:
            return _translate_directly(copy.deepcopy(program), table)
    onnx = torch.onnx.export(
        program, opset_version=TORCHLIB_OPSET, optimize=False, verbose=False, custom_translation_table=table
    )
    assert onnx is not None
    return onnx.model


def _translate_directly(program: Any, table: dict[Any, Any]) -> ir.Model:
    from torch.onnx._internal.exporter import _core

    from kvparity.exporter.trace.torchlib import registry_for

    registry = registry_for(normalise(program), table, TORCHLIB_OPSET)
    onnx = _core._exported_program_to_onnx_program(program, registry=registry, lower="at_conversion")
    return onnx.model


def _make_fake(model: Any, dtype: torch.dtype) -> tuple[Any, dict[str, torch.Tensor]]:
    """Replace every tensor of the meta model by a fake one; return the mode and the real computed buffers by name."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode(allow_non_fake_inputs=True)
    mode.cache_enabled = False  # with symbolic sizes, keeping results costs more than computing them again
    persistent = set(model.state_dict().keys())
    buffers = {name: buffer for name, buffer in model.named_buffers() if name not in persistent}
    fakes: dict[int, nn.Parameter] = {}
    with mode:
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    wide = dtype == torch.float64 and parameter.is_floating_point()
                    kind = dtype if wide else parameter.dtype
                    module._parameters[name] = fakes.setdefault(
                        id(parameter), nn.Parameter(torch.empty(parameter.shape, dtype=kind), requires_grad=False)
                    )
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    kind = dtype if buffer.is_floating_point() and dtype == torch.float64 else buffer.dtype
                    module._buffers[name] = torch.empty(buffer.shape, dtype=kind)
    return mode, buffers


def _name_weights(model: ir.Model, meta_model: Any, buffers: dict[str, torch.Tensor]) -> frozenset[str]:
    """Rename initializers to transformers' names, give computed buffers their values, join tied parameters."""
    canonical: dict[int, str] = {}
    alias: dict[str, str] = {}
    tensors = [*meta_model.named_parameters(remove_duplicate=False), *meta_model.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        alias[name] = canonical.setdefault(id(tensor), name)
    weights: set[str] = set()
    initializers = model.graph.initializers
    for old in list(initializers):
        value = initializers[old]
        name = old.removeprefix(_PREFIX)
        if name not in alias:
            continue  # a constant that the exporter made
        name = alias[name]
        del initializers[old]
        if name in initializers:
            value.replace_all_uses_with(initializers[name])
            continue
        value.name = name
        if name in buffers:
            real = buffers[name].detach().numpy()
            assert value.dtype is not None
            value.const_value = ir.tensor(real.astype(value.dtype.numpy()), name=name)
        else:
            value.const_value = None
            weights.add(name)
        initializers[name] = value
    return frozenset(weights)


def _sizes_may_be_one() -> Any:
    """Let dynamic sizes be 0 or 1 as well, as pasts and sequences are."""
    return torch.fx.experimental._config.patch(backed_size_oblivious=True)


@contextlib.contextmanager
def _without_extras() -> Any:
    """Neither fake results cached (symbolic sizes rarely hit) nor stack traces (nobody reads them).

    Both together were a third of a trace's time.
    """
    import torch._dynamo.config
    import torch.fx.config

    before = torch.fx.config.do_not_emit_stack_traces
    torch.fx.config.do_not_emit_stack_traces = True
    try:
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            yield
    finally:
        torch.fx.config.do_not_emit_stack_traces = before


@contextlib.contextmanager
def _default_dtype(dtype: torch.dtype) -> Any:
    """Torch's exporter makes python scalars tensors of the default dtype; float32 would round them."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype if dtype == torch.float64 else before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _quiet() -> Any:
    """Torch's exporter prints and warns about packages and experimental states that no user can act on."""
    with quiet_libraries(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
