"""Probes: the values of a graph that modules return; a graph in, module path to value name out.

Reports and ``--locate`` compare them with what the same modules of transformers return. A probe's value is called by
its module's path (``layers.1.self_attn.q_norm``), and every other value that a node returns has a ``/`` in its name, so
only probes that are ports as well have to be listed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

__all__ = ["keep_probes", "kept_probes"]

_PROBES = "kvparity.probes"  # a graph's metadata: JSON object, probe to the port that is its value


def keep_probes(model: ir.Model, probes: Mapping[str, str]) -> None:
    """Write into a graph's metadata which probes have values of other names (ports).

    Args:
        model: The graph; values of all other probes are called by the probe already.
        probes: Module path to value name.
    """
    others = {probe: name for probe, name in probes.items() if probe != name}
    model.metadata_props[_PROBES] = json.dumps(others, separators=(",", ":"))


def kept_probes(model: ir.Model) -> dict[str, str]:
    """Module path to value name of every probe in a graph, in execution order; none in a graph that is not ours."""
    if _PROBES not in model.metadata_props:
        return {}
    ports = {str(probe): str(name) for probe, name in json.loads(model.metadata_props[_PROBES]).items()}
    probe_of = {name: probe for probe, name in ports.items()}
    outputs = {value.name for value in model.graph.outputs}
    found: dict[str, str] = {}
    for name in (str(value.name) for node in model.graph for value in node.outputs if value.name):
        if name in probe_of:
            found[probe_of[name]] = name
        elif name not in outputs and "/" not in name:
            found[name] = name
    return found | ports
