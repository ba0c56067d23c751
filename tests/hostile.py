"""Two hundred ways to damage a package, or to attack who judges it: none of them may pass, crash, or reach outside."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["KINDS", "hostile"]

_PLACES = ("../secret.bin", "/etc/passwd", "x/../../secret.bin", "..\\secret.bin", "C:\\secret.bin", "", "file:secret")


def hostile(package: Path, number: int) -> str:
    """Damage prefill.onnx, decode.onnx or their data in place.

    Args:
        package: A right package, as ``tests.foreign.foreign_package`` writes it, that may be damaged.
        number: Which damage; the same number does the same.

    Returns:
        What was done.
    """
    draw = random.Random(number)
    kind = list(KINDS)[number % len(KINDS)]
    KINDS[kind](package, draw)
    return f"{number}: {kind}"


def _edit(change: Callable[[Any, random.Random], None]) -> Callable[[Path, random.Random], None]:
    """A change of both graphs as protobuf messages: attackers keep to no library's checks."""

    def damage(package: Path, draw: random.Random) -> None:
        import onnx

        seed = draw.random()
        for name in ("prefill.onnx", "decode.onnx"):
            proto = onnx.load(package / name, load_external_data=False)
            change(proto, random.Random(seed))
            (package / name).write_bytes(proto.SerializeToString())

    return damage


def _large(proto: Any, draw: random.Random) -> Any:
    return draw.choice([tensor for tensor in proto.graph.initializer if tensor.external_data])


def _entry(tensor: Any, key: str) -> Any:
    return next(entry for entry in tensor.external_data if entry.key == key)


def _cut(package: Path, draw: random.Random) -> None:
    for name in ("prefill.onnx", "decode.onnx"):
        whole = (package / name).read_bytes()
        (package / name).write_bytes(whole[: draw.randrange(len(whole) - 1)])


def _noise(package: Path, draw: random.Random) -> None:
    (package / "decode.onnx").write_bytes(draw.randbytes(draw.choice((0, 1, 7, 4096))))


def _location(proto: Any, draw: random.Random) -> None:
    _entry(_large(proto, draw), "location").value = draw.choice(_PLACES)


def _offset(proto: Any, draw: random.Random) -> None:
    value = draw.choice(("-8", "1e3", str(2**62), "9" * 30, "0x10", ""))
    _entry(_large(proto, draw), draw.choice(("offset", "length"))).value = value


def _dims(proto: Any, draw: random.Random) -> None:
    tensor = _large(proto, draw)
    tensor.dims[0] = draw.choice((-1, 0, 2**40, 2**62, tensor.dims[0] + 1))


def _type(proto: Any, draw: random.Random) -> None:
    _large(proto, draw).data_type = draw.choice((0, 7, 8, 10, 11, 14, 99))


def _operator(proto: Any, draw: random.Random) -> None:
    draw.choice(proto.graph.node).op_type = draw.choice(("Absent", "", "If", "Loop", "ConstantOfShape", "\x00"))


def _domain(proto: Any, draw: random.Random) -> None:
    draw.choice(proto.graph.node).domain = draw.choice(("evil", "ai.onnx.contrib", "com.microsoft.extensions", "../x"))


def _circle(proto: Any, draw: random.Random) -> None:
    nodes = [node for node in proto.graph.node if node.input]
    draw.choice(nodes[: len(nodes) // 2]).input[0] = nodes[-1].output[0]


def _dropped(proto: Any, draw: random.Random) -> None:
    del proto.graph.node[draw.randrange(len(proto.graph.node))]


def _port(proto: Any, draw: random.Random) -> None:
    ports = draw.choice((proto.graph.input, proto.graph.output))
    ports[draw.randrange(len(ports))].name = draw.choice(("", "past_key_values.99.key", "x" * 10_000))


def _port_type(proto: Any, draw: random.Random) -> None:
    ports = draw.choice((proto.graph.input, proto.graph.output))
    kind = ports[draw.randrange(len(ports))].type.tensor_type
    kind.elem_type = draw.choice((0, 8, 10, 99))


def _no_ports(proto: Any, draw: random.Random) -> None:
    del draw.choice((proto.graph.input, proto.graph.output))[:]


def _opset(proto: Any, draw: random.Random) -> None:
    proto.opset_import[0].version = draw.choice((-1, 0, 1, 10_000, 2**62))


def _before_logits(text: str) -> Callable[[Any, random.Random], None]:
    """Nodes of a text graph ``y = f(x)`` between the logits and their output."""

    def change(proto: Any, draw: random.Random) -> None:
        from onnx.parser import parse_graph

        last = next(node for node in proto.graph.node if "logits" in node.output)
        last.output[list(last.output).index("logits")] = "x"
        made = parse_graph(text)
        proto.graph.node.extend(made.node)

    return change


_ENDLESS = """g (float[a,b,c] x) => (float[a,b,c] logits) {
  most = Constant<value: tensor = int64 {9223372036854775807}>()
  yes = Constant<value: tensor = bool {1}>()
  logits = Loop(most, yes, x) <body = b (int64 i, bool go, float[a,b,c] s) => (bool more, float[a,b,c] t) {
    more = Identity(go)
    t = Neg(s)
  }>
}"""
_HUGE = """g (float[a,b,c] x) => (float[a,b,c] logits) {
  n = Constant<value: tensor = int64[4] {1000000, 1, 1, 1}>()
  many = Expand(x, n)
  axes = Constant<value: tensor = int64[1] {0}>()
  logits = ReduceMax<keepdims = 0>(many, axes)
}"""


def _weights(package: Path, draw: random.Random) -> None:
    path = package / "weights.bin"
    whole = path.read_bytes()
    what = draw.choice(("short", "zeros", "nan", "missing", "folder"))
    path.unlink()
    if what == "short":
        path.write_bytes(whole[: len(whole) // 2])
    elif what == "zeros":
        path.write_bytes(bytes(len(whole)))
    elif what == "nan":
        path.write_bytes(b"\xff" * len(whole))
    elif what == "folder":
        path.mkdir()


def _link(package: Path, draw: random.Random) -> None:
    """The right weights, but outside the package: reading them would be a match."""
    name = draw.choice(("weights.bin", "decode.onnx", "prefill.onnx"))
    outside = package.parent / f"{package.name}-outside-{name}"
    (package / name).rename(outside)
    (package / name).symlink_to(outside)


def _settings(package: Path, draw: random.Random) -> None:
    texts = ("[" * 5000, "", "null", "{", '{"model": 3}', '{"model": {"decoder": {"filename": "../decode.onnx"}}}')
    more = ('{"model": {"decoder": {"filename": "/etc/passwd"}}}', '{"model": {"decoder": {"filename": ""}}}')
    (package / "genai_config.json").write_text(draw.choice((*texts, *more)), encoding="utf-8")


def _deep_settings(package: Path, draw: random.Random) -> None:
    name = draw.choice(("model.onnx\x00", "a" * 5000, "decode.onnx/..", "prefill.onnx/../../x", ".", "nothing.onnx"))
    text = json.dumps({"model": {"decoder": {"filename": name}}})
    (package / "genai_config.json").write_text(text, encoding="utf-8")


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    "cut off": _cut,
    "noise": _noise,
    "data at another place": _edit(_location),
    "data at another offset": _edit(_offset),
    "absurd sizes": _edit(_dims),
    "another dtype": _edit(_type),
    "another operator": _edit(_operator),
    "another domain": _edit(_domain),
    "a circle": _edit(_circle),
    "a node less": _edit(_dropped),
    "a port's name": _edit(_port),
    "a port's dtype": _edit(_port_type),
    "no ports": _edit(_no_ports),
    "an absurd opset": _edit(_opset),
    "a loop without end": _edit(_before_logits(_ENDLESS)),
    "memory without bound": _edit(_before_logits(_HUGE)),
    "damaged weights": _weights,
    "a link to outside": _link,
    "hostile settings": _settings,
    "settings that name other files": _deep_settings,
}
