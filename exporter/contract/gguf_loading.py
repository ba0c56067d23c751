"""Has transformers read a GGUF file whole: tensors that it has no name for, and those in the file's other parts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__all__ = ["part_paths", "whole_gguf"]

_BARE = ("layer_output_scale",)  # transformers' layer_scalar, a parameter without an ending
_PART = re.compile(r"(.*-)\d{5}(-of-(\d{5})\.gguf)")


def part_paths(path: Path) -> list[Path]:
    """The files that llama.cpp splits a GGUF file into, by the name of one of them; the file alone otherwise."""
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    start, end, count = named.groups()
    return [path.with_name(f"{start}{number:05}{end}") for number in range(1, int(count) + 1)]


@contextmanager
def whole_gguf() -> Iterator[Any]:
    """While the block runs, transformers reads GGUF files whole; gives its function from a model to GGUF names.

    transformers has two readers, and of a file in parts both read the first part alone.
    """
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loader
    from transformers.integrations.gguf import reader
    from transformers.quantizers import quantizer_gguf as quantizer

    names_of, plain, state_of = loader.get_gguf_hf_weights_map, gguf.GGUFReader, reader.load_gguf_state_dict

    def names(*arguments: Any, **named: Any) -> dict[str, str]:
        found = names_of(*arguments, **named)
        return {f"{name}.weight" if name.endswith(_BARE) else name: other for name, other in found.items()}

    def others(path: Any) -> list[Any]:
        parts = reader.read_gguf_metadata(str(path))[0].get("split.count", 1)
        return [tensor for other in part_paths(Path(path))[1:] if parts > 1 for tensor in plain(other).tensors]

    class Whole(plain):  # type: ignore[misc, valid-type]
        def __init__(self, path: Any, mode: Any = "r") -> None:
            super().__init__(path, mode)
            self.tensors.extend(others(path))

    def header(path: str) -> Any:
        first = reader.GgufHeader.from_file(path)
        more = [reader.TensorInfo(t.name, _shape(t), int(t.tensor_type), 0, int(t.n_bytes)) for t in others(path)]
        return first._replace(tensors=(*first.tensors, *more))

    def state(first: Any) -> dict[str, Any]:
        more = {t.name: reader.LazyGgufTensor(t.data, int(t.tensor_type), _stored(t)) for t in others(first.path)}
        return state_of(first) | more

    ours: list[tuple[Any, str, Any]] = [
        (loader, "get_gguf_hf_weights_map", names),
        (gguf, "GGUFReader", Whole),
        (quantizer, "GgufHeader", SimpleNamespace(from_file=header)),
        (quantizer, "load_gguf_state_dict", state),
    ]
    theirs = [(module, name, getattr(module, name)) for module, name, _ in ours]
    try:
        for replaced in ours:
            setattr(*replaced)
        yield names
    finally:
        for replaced in theirs:
            setattr(*replaced)


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _stored(tensor: Any) -> tuple[int, ...]:
    """The shape of its values, or of its blocks' bytes."""
    return _shape(tensor) if tensor.tensor_type.name in ("F32", "F16", "BF16") else tensor.data.shape
