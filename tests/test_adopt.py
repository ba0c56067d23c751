"""Foreign packages: found, read as untrusted data, recognised, audited, and judged against the checkpoint."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvparity
from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import BundleError, KvparityError
from kvparity.exporter.contract.foreign import ForeignGraph
from kvparity.exporter.contract.spec import Port
from kvparity.runners.adopt.audit import audit_weights
from kvparity.runners.adopt.graph import read_graph
from kvparity.runners.adopt.package import find_package
from kvparity.runners.adopt.ports import extra_input, recognise_inputs, recognise_outputs
from kvparity.runners.adopt.session import filled_rows, foreign_feeds
from kvparity.runners.adopt.stored import Stored
from tests.foreign import foreign_package
from tests.synthetic import MODEL

SHORT: dict[str, Any] = {"limit": 140, "cases": ("prefill-129", "handoff-128", "batch-ragged")}


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("names", "kind", "decode"),
    [
        (["model.onnx"], "plain", "model.onnx"),
        (["prefill.onnx", "decode.onnx"], "plain", "decode.onnx"),
        (["config.json", "model.onnx"], "optimum", "model.onnx"),
        (
            ["config.json", "decoder_model.onnx", "decoder_with_past_model.onnx"],
            "optimum",
            "decoder_with_past_model.onnx",
        ),
        (["config.json", "decoder_model.onnx", "decoder_model_merged.onnx"], "optimum", "decoder_model_merged.onnx"),
        (["config.json", "onnx/model.onnx", "onnx/model_q4.onnx"], "transformersjs", "onnx/model.onnx"),
    ],
)
def test_packages_are_recognised_by_their_files(tmp_path: Path, names: list[str], kind: str, decode: str) -> None:
    found = find_package(touch(tmp_path, *names))
    assert (found.kind, found.graphs["decode"]) == (kind, decode)


def test_a_variant_is_the_one_asked_for_or_refused(tmp_path: Path) -> None:
    folder = touch(tmp_path, "onnx/model.onnx", "onnx/model_q4f16.onnx")
    assert find_package(folder, "q4f16").graphs["prefill"] == "onnx/model_q4f16.onnx"
    with pytest.raises(BundleError, match="has no variant 'q8'"):
        find_package(folder, "q8")


def test_a_genai_folder_says_which_file_is_the_decoder(tmp_path: Path) -> None:
    decoder = {"model": {"type": "llama", "decoder": {"filename": "text.onnx"}}}
    (tmp_path / "genai_config.json").write_text(json.dumps(decoder), encoding="utf-8")
    assert find_package(touch(tmp_path, "text.onnx")).graphs == {"prefill": "text.onnx", "decode": "text.onnx"}
    (tmp_path / "genai_config.json").write_text("[" * 5000, encoding="utf-8")
    with pytest.raises(BundleError, match="not readable JSON"):
        find_package(tmp_path)


@pytest.mark.parametrize(
    "pattern",
    [
        "past_key_values.{n}.{part}",
        "past_key_values.{n}.decoder.{part}",
        "past_{part}_{n}",
        "past_key_values_{n}_{part}",
        "input.past_key_values.layers.{n}.{part}s",
        "cache.layers.{n}.{part}s",
        "{short}_cache_{n}",
    ],
)
def test_caches_are_recognised_however_they_are_called(pattern: str) -> None:
    def name(slot: int, part: str) -> str:
        return pattern.format(n=slot, part=part, short=part[0])

    slots = MODEL.cache_names()
    ports = [Port("input_ids", "int64", ("b", "s")), Port("attention_mask", "int64", ("b", "t"))]
    ports += [Port(name(slot.slot, part), "float32", ("b", 1, "p", 4)) for slot, part in slots]
    found = recognise_inputs(ports, MODEL)
    assert not found.others
    assert {f"past_key_values.{slot.slot}.{part}": name(slot.slot, part) for slot, part in slots}.items() <= (
        found.names.items()
    )


def test_inputs_that_nobody_can_feed_are_named() -> None:
    window = extra_input(Port("layers.0._sliding_window_tensor", "int64", ()), MODEL)
    assert (window.kind, window.value) == ("constant", float(MODEL.window or 0))
    assert extra_input(Port("use_cache_branch", "bool", (1,)), MODEL).value == 1
    assert extra_input(Port("seqlens_k", "int32", ("b",)), MODEL).kind == "last_slots"
    with pytest.raises(BundleError, match=r"input pixel_values \(float32\[1, 3\]\): nothing says what it is fed with"):
        extra_input(Port("pixel_values", "float32", (1, 3)), MODEL)
    with pytest.raises(BundleError, match="no output is called logits"):
        recognise_outputs([Port("x", "float32", ("b", 3))], MODEL)


def graph_of(path: Path, domain: str = "", location: str = "") -> Path:
    import onnx_ir as ir

    value = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n"]))
    node = ir.node("Identity", [value], domain=domain)
    node.outputs[0].name = "y"
    node.outputs[0].type, node.outputs[0].shape = value.type, value.shape
    graph = ir.Graph(
        [value], [node.outputs[0]], nodes=[node], opset_imports={"": 18, **({domain: 1} if domain else {})}
    )
    if location:
        tensor = ir.ExternalTensor(location, 0, 4, ir.DataType.FLOAT, shape=ir.Shape([1]), name="w")
        graph.register_initializer(ir.Value(name="w", const_value=tensor))
    proto = ir.to_proto(ir.Model(graph, ir_version=10))
    path.write_bytes(proto.SerializeToString())
    return path


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../b", "C:\\x", "..\\up"])
def test_data_outside_the_package_is_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(BundleError, match="outside the package; refused"):
        read_graph(graph_of(tmp_path / "m.onnx", location=location), tmp_path)


@pytest.mark.parametrize("location", ["w\0eights", "w" * 5000])
def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(BundleError, match="no file can have this name"):
        read_graph(graph_of(tmp_path / "m.onnx", location=location), tmp_path)


def test_what_is_no_graph_or_needs_a_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"operators of domain 'evil.ops' need a library of their own"):
        read_graph(graph_of(tmp_path / "m.onnx", domain="evil.ops"), tmp_path)
    with pytest.raises(BundleError, match=r"its data file w.bin is missing"):
        read_graph(graph_of(tmp_path / "m.onnx", location="w.bin"), tmp_path)
    (tmp_path / "m.onnx").write_bytes(b"\x00" * 64)
    with pytest.raises(BundleError, match="not an ONNX graph"):
        read_graph(tmp_path / "m.onnx", tmp_path)


def test_functions_that_explode_or_turn_in_a_circle_are_refused(tmp_path: Path) -> None:
    def written(calls: dict[str, list[str]]) -> Path:
        import onnx
        from onnx.parser import parse_model

        head = '<ir_version: 10, opset_import: ["" : 18, "pkg" : 1]> g (float[1] x) => (float[1] y) { y = pkg.f0(x) }'
        bodies = [
            f'<domain: "pkg", opset_import: ["" : 18, "pkg" : 1]> {name} (x) => (y) '
            f"{{ {' '.join(f'y = {operator}(x)' for operator in used)} }}"
            for name, used in calls.items()
        ]
        onnx.save(parse_model("\n".join([head, *bodies])), tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    laughs = {f"f{level}": [f"pkg.f{level + 1}"] * 10 for level in range(7)} | {"f7": ["Neg"]}
    with pytest.raises(BundleError, match="more than 500,000 nodes"):
        read_graph(written(laughs), tmp_path)
    with pytest.raises(BundleError, match="call each other in a circle"):
        read_graph(written({"f0": ["pkg.f1"], "f1": ["pkg.f0"]}), tmp_path)


def test_links_that_leave_the_package_are_refused_and_those_of_a_hub_cache_are_not(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"{}" + bytes(64))
    package = tmp_path / "cache" / "snapshots" / "a1"
    package.mkdir(parents=True)
    graph_of(package / "m.onnx", location="w.bin")
    (package / "w.bin").symlink_to(secret)
    with pytest.raises(BundleError, match=r"w\.bin: is a link to a file outside the package"):
        read_graph(package / "m.onnx", package)
    (package / "genai_config.json").symlink_to(secret)
    with pytest.raises(BundleError, match=r"genai_config\.json: is a link to a file outside"):
        find_package(package)
    (package / "w.bin").unlink()
    (tmp_path / "cache" / "blobs").mkdir()
    (tmp_path / "cache" / "blobs" / "b1").write_bytes(bytes(64))
    (package / "w.bin").symlink_to("../../blobs/b1")
    assert read_graph(package / "m.onnx", package).data_files == ("w.bin",)


def stored(name: str, array: Any, coding: str = "float32", node: int = 0, step: float = 0.0) -> Stored:
    return Stored(name, lambda: array, array.shape, coding, node, step)


def test_every_way_to_store_a_weight_is_found() -> None:
    random = np.random.default_rng(0)
    names = ("q", "k", "up", "embed", "half")
    weights = {f"model.layers.0.{n}.weight": random.standard_normal((6, 8)).astype(np.float32) for n in names}
    weights["model.layers.0.norm.weight"] = random.standard_normal(8).astype(np.float32)
    q, k, up, embed, half, norm = weights.values()
    items = [
        stored("qk", np.concatenate([q, k]), node=1),
        stored("up_t", up.T, node=2),
        stored("scaled", embed * 12.5, node=3),
        stored("half", half.astype(np.float16).astype(np.float32), "float16", 4),
        stored("norm", norm + 1, node=5),
    ]
    audit = audit_weights(weights, items, {"c": 12.65, "d": 3.0}, {"embed.scale": 12.6491106})
    found = {row.name.split(".")[3]: (row.state, row.how.split(" of ")[0]) for row in audit.weights}
    assert found["q"] == ("exact", "rows 0 to 5")
    assert found["k"] == ("exact", "rows 6 to 11")
    assert found["up"] == ("exact", "transposed")
    assert found["embed"][1] == "times 12.5"
    assert found["half"] == ("rounded", "as it is")
    assert found["norm"][1] == "plus 1"
    assert not audit.faults
    assert [(row.name, row.found) for row in audit.constants] == [("embed.scale", 12.65)]


def test_zeroed_missing_and_exchanged_weights_are_faults() -> None:
    random = np.random.default_rng(1)
    weights = {f"model.layers.{n}.up.weight": random.standard_normal((6, 8)).astype(np.float32) for n in range(3)}
    arrays = [array.copy() for array in weights.values()]
    arrays[0][4] = 0
    zeroed = audit_weights(weights, [stored(f"w{n}", array, node=n) for n, array in enumerate(arrays)], {}, {})
    assert [(row.name, row.note) for row in zeroed.faults] == [("model.layers.0.up.weight", "row 4 is zero")]
    arrays = list(weights.values())
    missing = audit_weights(weights, [stored("w0", arrays[0]), stored("w1", arrays[1], node=1)], {}, {})
    assert [row.state for row in missing.faults] == ["missing"]
    order = [arrays[1], arrays[0], arrays[2]]
    exchanged = audit_weights(weights, [stored(f"w{n}", array, node=n) for n, array in enumerate(order)], {}, {})
    assert {row.note for row in exchanged.faults} == {"stands in layer 0's place", "stands in layer 1's place"}


def test_a_foreign_package_of_the_tiny_checkpoint_matches(tiny_bundle: Bundle, tmp_path: Path) -> None:
    package = foreign_package(tiny_bundle, tmp_path / "theirs")
    report = kvparity.judge(package, output=tmp_path / "kept", **SHORT)
    assert report.verdict == "match"
    assert report.package is not None
    assert report.package.audit.count("exact") == len(report.package.audit.weights)
    assert "past the window of 128" in report.text().splitlines()[0]
    again = kvparity.compare(tmp_path / "kept", cases=("prefill-129",), exact=True)  # as every other command does
    assert again.verdict == "match"


def test_a_zeroed_row_is_named_by_the_audit(tiny_bundle: Bundle, tmp_path: Path) -> None:
    package = foreign_package(tiny_bundle, tmp_path / "theirs")
    place = next(
        value.const_value
        for name, value in _initializers(package / "decode.onnx").items()
        if name == "model.layers.3.mlp.up_proj.weight"
    )
    with (package / "weights.bin").open("r+b") as stream:
        stream.seek((place.offset or 0) + 17 * 160 * 4)
        stream.write(bytes(160 * 4))
    report = kvparity.judge(package, **{**SHORT, "cases": ("prefill-129",)})
    assert report.verdict == "mismatch"
    assert report.package is not None
    assert [(row.name, row.note) for row in report.package.audit.faults] == [
        ("model.layers.3.mlp.up_proj.weight", "row 17 is zero")
    ]
    assert report.locations[0].layer == 3


def test_a_window_off_by_one_is_located_without_probe_names(tiny_bundle: Bundle, tmp_path: Path) -> None:
    edited: list[str] = []

    def narrow(model: Any) -> None:
        import onnx_ir as ir

        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            if tensor is not None and tensor.size == 1 and not isinstance(tensor, ir.ExternalTensor):
                readers = {use.node.op_type for use in value.uses()}
                if int(tensor.numpy().reshape(-1)[0]) == 128 and readers & {"Less", "LessOrEqual"}:
                    value.const_value = ir.tensor(np.full(tensor.numpy().shape, 127, np.int64), name=name)
                    edited.append(name)

    package = foreign_package(tiny_bundle, tmp_path / "theirs", narrow)
    assert edited
    report = kvparity.judge(package, **{**SHORT, "cases": ("prefill-129",)})
    assert report.verdict == "mismatch"
    assert (report.locations[0].fault, report.locations[0].layer) == ("export", 0)
    assert "self_attn" in report.locations[0].probe


def _initializers(path: Path) -> dict[str, Any]:
    import onnx_ir as ir

    return dict(ir.load(path).graph.initializers.items())


def test_damaged_packages_are_one_line_and_never_a_match(tiny_bundle: Bundle, tmp_path: Path) -> None:
    package = foreign_package(tiny_bundle, tmp_path / "theirs")
    whole = (package / "decode.onnx").read_bytes()
    random = np.random.default_rng(3)
    for _ in range(150):
        damaged = bytearray(whole)
        for at in random.integers(0, len(whole), 8):
            damaged[at] = int(random.integers(0, 256))
        cut = int(random.integers(0, len(whole))) if random.random() < 0.3 else len(whole)
        (package / "decode.onnx").write_bytes(bytes(damaged[:cut]))
        assert _read(package) in ("read", "refused in one line")


def _read(package: Path) -> str:
    try:
        found = read_graph(package / "decode.onnx", package)
    except KvparityError as error:
        return str(error) if "\n" in str(error) else "refused in one line"
    return "read" if found.inputs else "without inputs"


@pytest.mark.parametrize("tokens_before", [0, 2, 4, 9])
def test_a_buffer_of_a_sliding_layer_holds_the_newest_rows_first(tokens_before: int) -> None:
    """As GroupQueryAttention with sliding_window_cache keeps them: the newest min(tokens, rows), from row 0 on."""
    rows, size = 4, 2
    names = {"input_ids": "ids", "attention_mask": "mask", "past_key_values.0.key": "past"}
    graph = ForeignGraph("decode", names, {"present.0.key": "present"}, buffers={"past": rows, "present": rows})
    ports = {name: Port(name, "int64" if name != "past" else "float32", ()) for name in names.values()}
    kept = min(tokens_before, rows - 1)  # our contract keeps window - 1 rows
    past = np.arange(tokens_before - kept, tokens_before, dtype=np.float32).reshape(1, 1, kept, 1).repeat(size, axis=3)
    ids = np.zeros((1, 1), np.int64)
    given: dict[str, Any] = {
        "input_ids": ids,
        "attention_mask": np.ones((1, tokens_before + 1)),
        "past_key_values.0.key": past,
    }
    model = replace(MODEL, slots=(replace(MODEL.slots[0], kv_heads=1, head_dim=size),))
    buffer = foreign_feeds(graph, ports, given, model)["past"]
    assert buffer.shape == (1, 1, rows, size)
    end = min(tokens_before, rows)
    assert buffer[0, 0, end - kept : end, 0].tolist() == past[0, 0, :, 0].tolist()
    made = filled_rows(graph, {"present": np.zeros((1, 1, rows, size)), "logits": ids}, tokens_before + 1)
    assert made["present"].shape[2] == min(tokens_before + 1, rows)
