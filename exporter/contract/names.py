"""Short names for a graph file, and the long ones back.

A graph says ``layers.1.self_attn.q_norm`` in a tenth of its bytes and more: for every node of the module, for the value
that it returns, and for every reader of it. A file has the layer's number and the last part of the path instead, and
says once what that part stands for:

* the value that a module returns: ``1.q_norm``;
* its weights: ``1.q_norm.weight``, where the checkpoint has ``model.layers.1.self_attn.q_norm.weight``;
* its nodes: ``1/qn/3``, by the first letters of the words, so that viewers group nodes by layer and module;
* other values are numbered, and so are constants.

:func:`spell_out` undoes it in memory; whoever looks at modules starts there.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from kvparity.exporter.contract.spec import FLOAT64_CONSTANTS

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = [
    "PROBES",
    "SCOPES",
    "STACK",
    "Abbreviations",
    "file_name",
    "kept_probes",
    "number",
    "shorten_names",
    "spell_out",
]

PROBES = "kvparity.probes"  # a graph's metadata: which values are probes, see kept_probes
SCOPES = "kvparity.scopes"  # the same: modules of a layer that return no probe
STACK = "kvparity.stack"  # the same: path of the layers in the checkpoint
_FILE_NAME = "kvparity.file_name"
_WHOLE = "layer"  # stands for the layer itself
_SHORT = 5  # letters of a part that nodes spell as it is


def number(index: int) -> str:
    """A count in base 36."""
    return np.base_repr(index, 36).lower()


@dataclass(frozen=True)
class Abbreviations:
    """What the parts of a path are called, for one stack of layers.

    Attributes:
        stack: Path of the layers, such as ``layers``.
        values: Path inside a layer to its name in values.
        scopes: Path inside a layer to its name in nodes.
    """

    stack: str
    values: dict[str, str]
    scopes: dict[str, str]

    @staticmethod
    def of(stack: str, inner: Collection[str]) -> Abbreviations:
        """Choose names; the same list in the same order gives the same names."""
        paths = dict.fromkeys(inner)
        values = {path: _ending(path or _WHOLE, {other or _WHOLE for other in paths}) for path in paths}
        scopes = {path: name for path, name in values.items() if len(name) <= _SHORT}
        taken = set(scopes.values())
        for path, name in values.items():
            if path not in scopes:
                scopes[path] = next(short for short in _initials(name) if short not in taken)
                taken.add(scopes[path])
        return Abbreviations(stack, values, scopes)

    def value(self, path: str) -> str:
        """The short name of a value that is called by its path; the path where there is none."""
        stack, layer, inner = split_path(path)
        return f"{layer}.{self.values[inner]}" if stack == self.stack and inner in self.values else path

    def scope(self, path: str) -> str:
        """The short form of a module's path."""
        stack, layer, inner = split_path(path)
        return f"{layer}/{self.scopes[inner]}" if stack == self.stack and inner in self.scopes else path

    def path_of_value(self, name: str) -> str:
        """The path that a value's short name stands for; any other name as it is."""
        return self._path(self.values, *name.partition("."), name)

    def path_of_scope(self, scope: str) -> str:
        """The same for the scope of a node."""
        return self._path(self.scopes, *scope.partition("/"), scope)

    def weight(self, name: str) -> str:
        """The short name of a weight that is called by its path from the base model on; the path if there is none."""
        return _of_module(name, self.value)

    def path_of_weight(self, name: str) -> str:
        """The path that a weight's short name stands for; any other name as it is."""
        return _of_module(name, self.path_of_value)

    def _path(self, names: dict[str, str], layer: str, _: str, short: str, name: str) -> str:
        inner = next((inner for inner, known in names.items() if known == short), None) if layer.isdigit() else None
        return name if inner is None else ".".join(part for part in (self.stack, layer, inner) if part)


def _of_module(name: str, rename: Callable[[str], str]) -> str:
    """Rename the module that a weight belongs to: the longest beginning of its name that has another name."""
    module, attribute = name, ""
    while "." in module:
        module, _, last = module.rpartition(".")
        attribute = f".{last}{attribute}"
        if rename(module) != module:
            return rename(module) + attribute
    return name


def split_path(path: str) -> tuple[str, str, str]:
    """``layers.1.self_attn.q_norm`` as (layers, 1, self_attn.q_norm); (path, "", "") where no part is a number."""
    found = re.match(r"([^.]+(?:\.\D[^.]*)*)\.(\d+)(?:\.(.+))?$", path)
    return (found[1], found[2], found[3] or "") if found else (path, "", "")


def _ending(path: str, others: Collection[str]) -> str:
    """The shortest end of a path that no other path has."""
    parts = path.split(".")
    for count in range(1, len(parts)):
        end = ".".join(parts[-count:])
        if not any(other != path and (other == end or other.endswith("." + end)) for other in others):
            return end
    return path


def _initials(name: str) -> Iterator[str]:
    """The first letter of every word of a name, the first two, …, then the name with a number."""
    words = [word for word in re.split(r"[._]", name) if word]
    for count in range(1, max(map(len, words)) + 1):
        yield "".join(word[:count] for word in words)
    yield from (f"{name}_{count}" for count in range(1, len(name) + 1000))


def shorten_names(model: ir.Model, probes: dict[str, str], weights: Collection[str]) -> None:
    """Give nodes, probes and constants their short names, and write into the metadata what they stand for.

    Args:
        model: A graph whose nodes are called ``<module>/<operator>``.
        probes: Probe to the value that carries it, in execution order.
        weights: Initializers that keep their names.
    """
    scopes = {node.name.rpartition("/")[0]: None for node in model.graph if node.name and "/" in node.name}
    stacks = Counter(split_path(path)[0] for path in [*probes, *scopes] if split_path(path)[1])
    stack = stacks.most_common(1)[0][0] if stacks else ""
    inside = [dict.fromkeys(_inside(stack, paths)) for paths in (probes, scopes)]
    short = Abbreviations.of(stack, [*inside[0], *inside[1]])
    model.metadata_props[SCOPES] = _json([_pattern(stack, path) for path in inside[1] if path not in inside[0]])
    _count_nodes(model, short)
    values = {str(value.name): value for node in model.graph for value in node.outputs if value.name}
    ports = {str(value.name) for value in model.graph.outputs}
    entries: dict[str | tuple[str, str], None] = {}
    for probe, name in probes.items():
        brief = short.value(probe)
        if name != probe or name in ports:
            entries[probe if name == probe else (probe, name)] = None
        elif brief == probe:
            entries[probe] = None
        else:
            values[name].name = brief
            entries[_pattern(stack, split_path(probe)[2])] = None
    entries |= dict.fromkeys(
        _pattern(stack, path) for path in inside[0]
    )  # ports' paths too: names are chosen among all
    model.metadata_props[PROBES] = _json(list(entries))
    _shorten_weights(model, short, weights)
    _number_constants(model, weights)


def _shorten_weights(model: ir.Model, short: Abbreviations, weights: Collection[str]) -> None:
    """Shorten the names of the layers' weights, where all lie under one path."""
    layered = [name for name in weights if split_path(name)[1] and name in model.graph.initializers]
    stacks = {split_path(name)[0] for name in layered}
    if len(stacks) != 1 or not f".{next(iter(stacks))}".endswith(f".{short.stack}"):
        return
    model.metadata_props[STACK] = stacks.pop()
    prefix = model.metadata_props[STACK].removesuffix(short.stack)
    for name in layered:
        brief = short.weight(name.removeprefix(prefix))
        if brief not in model.graph.initializers and short.path_of_weight(brief) == name.removeprefix(prefix):
            model.graph.initializers[name].name = brief


def _inside(stack: str, paths: Collection[str]) -> list[str]:
    found = [split_path(path) for path in paths]
    return [inner for start, layer, inner in found if layer and start == stack]


def _pattern(stack: str, inner: str) -> str:
    return f"{stack}.*.{inner}" if inner else f"{stack}.*"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))


def _count_nodes(model: ir.Model, short: Abbreviations) -> None:
    seen: Counter[str] = Counter()
    for node in model.graph:
        scope = short.scope((node.name or "").rpartition("/")[0])
        if scope:
            seen[scope] += 1
            node.name = f"{scope}/{seen[scope]}"


def _number_constants(model: ir.Model, weights: Collection[str]) -> None:
    """Call the constants of a graph ``c0``, ``c1``, …."""
    digits = json.loads(model.metadata_props.get(FLOAT64_CONSTANTS, "{}"))
    initializers = model.graph.initializers
    known = {str(value.name) for node in model.graph for value in node.outputs} | initializers.keys()
    free = (name for index in range(len(known) * 2) if (name := "c" + number(index)) not in known)
    ours = [name for name in initializers if name not in weights and "." not in name]  # a weight's name has a point
    for old in sorted(ours, key=lambda name: -len(initializers[name].uses())):  # the most used ones get short names
        value, new = initializers[old], next(free)
        value.name = new  # the graph's table follows
        if old in digits:
            digits[new] = digits.pop(old)
    if digits:
        model.metadata_props[FLOAT64_CONSTANTS] = json.dumps(digits, sort_keys=True)


def _table(model: ir.Model) -> Abbreviations | None:
    """The abbreviations of a graph; None for one that has long names."""
    if SCOPES not in model.metadata_props:
        return None
    entries = [*json.loads(model.metadata_props.get(PROBES, "[]")), *json.loads(model.metadata_props[SCOPES])]
    patterns = [entry.split(".*") for entry in entries if isinstance(entry, str) and ".*" in entry]
    return Abbreviations.of(patterns[0][0] if patterns else "", [inner.removeprefix(".") for _, inner in patterns])


def kept_probes(model: ir.Model) -> dict[str, str]:
    """What a graph's metadata says: probe to the name of the value that carries it.

    A JSON list of names; of ``[probe, value]`` where they differ; and of patterns such as ``layers.*.mlp.up_proj``, one
    for all layers whose value has the short name. Earlier bundles have a map, or no patterns.
    """
    kept = json.loads(model.metadata_props.get(PROBES, "[]"))
    if isinstance(kept, dict):
        return {str(probe): str(value) for probe, value in kept.items()}
    table = _table(model)
    pairs = [(str(k), str(k)) if isinstance(k, str) else (str(k[0]), str(k[1])) for k in kept if ".*" not in k]
    found = dict(pairs)
    if table is not None:
        ports = {value.name for value in model.graph.outputs}
        for name in (str(value.name) for node in model.graph for value in node.outputs if value.name not in ports):
            path = table.path_of_value(name)
            if path != name:
                found.setdefault(path, name)
    return found


def spell_out(model: ir.Model) -> None:
    """Give a graph its long names back, in place: ``layers.1.self_attn.q_norm/Mul_2``. :func:`file_name` has the other.

    A graph that has long names stays as it is.
    """
    table = _table(model)
    if table is None:
        for node in model.graph:
            node.metadata_props.pop(_FILE_NAME, None)
        return
    probes = kept_probes(model)
    paths = {name: probe for probe, name in probes.items() if table.value(probe) == name}
    seen: Counter[str] = Counter()
    for node in model.graph:
        for value in node.outputs:
            value.name = paths.get(str(value.name), value.name)
        node.metadata_props[_FILE_NAME] = node.name or ""
        short, slash, count = (node.name or "").rpartition("/")
        if slash and count.isdigit():
            name = f"{table.path_of_scope(short)}/{node.op_type}"
            seen[name] += 1
            node.name = f"{name}_{seen[name]}" if seen[name] > 1 else name
    prefix = model.metadata_props.pop(STACK, table.stack).removesuffix(table.stack)
    for name in list(model.graph.initializers):
        path = table.path_of_weight(name)
        if path != name:
            model.graph.initializers[name].name = prefix + path
    spelled = {probe: paths.get(name, name) for probe, name in probes.items()}
    model.metadata_props[PROBES] = _json([p if p == name else [p, name] for p, name in spelled.items()])
    del model.metadata_props[SCOPES]


def file_name(node: ir.Node) -> str:
    """What a node is called in the file that it was read from."""
    return node.metadata_props.get(_FILE_NAME) or str(node.name or "")
