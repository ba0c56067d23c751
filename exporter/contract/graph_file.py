"""Reads ONNX files whose external data may be links, as hub caches and hard-linked copies hold them.

onnx and onnx_ir refuse external data that is a symbolic link out of the folder or has several hard links. Here the rule
is about names: what a graph says may not leave its folder, and a link that whoever made the folder laid is followed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from kvparity.exporter.contract.bundle import inside
from kvparity.exporter.contract.errors import BundleError

__all__ = ["external_tensors", "load_graph_file", "load_whole_graph"]


def load_graph_file(path: Path) -> Any:
    """Read an ONNX file as an onnx_ir model; its weights are read when they are asked for.

    Raises:
        BundleError: It is no ONNX file, or names external data outside of its folder.
    """
    import onnx_ir as ir

    with _refusals(path):
        model = ir.load(path)
    if not model.graph.outputs:
        raise BundleError(f"{path}: holds no graph; export again or restore the file")
    for value, tensor in external_tensors(model):
        file = inside(path.parent, str(tensor.location))
        if file.is_file() and file.stat().st_size < (tensor.offset or 0) + (tensor.length or 0):
            raise BundleError(f"{path}: {tensor.location} is shorter than {tensor.name} needs; restore the file")
        value.const_value = _linked()(tensor, file)
    return model


def load_whole_graph(path: Path) -> Any:
    """Read an ONNX file and its weights into one ``onnx.ModelProto``; onnx alone is needed.

    Raises:
        BundleError: As :func:`load_graph_file`, or the weights are shorter than the graph says.
    """
    import onnx

    with _refusals(path):
        model = onnx.load(path, load_external_data=False)
    if not model.graph.output:
        raise BundleError(f"{path}: holds no graph; export again or restore the file")
    for tensor in model.graph.initializer:
        if onnx.external_data_helper.uses_external_data(tensor):
            data = onnx.external_data_helper.ExternalDataInfo(tensor)
            with _refusals(path), inside(path.parent, data.location).open("rb") as stream:
                stream.seek(data.offset or 0)
                tensor.raw_data = stream.read(-1 if data.length is None else data.length)
            if data.length is not None and len(tensor.raw_data) != data.length:
                raise BundleError(f"{path}: {data.location} is shorter than {tensor.name} needs; restore the file")
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
    return model


@contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Say in one line why a file is no graph."""
    try:
        yield
    except BundleError:
        raise
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be read ({error.strerror}); restore {Path(error.filename or path).name}"
        ) from error
    except Exception as error:  # protobuf's own, and whatever a deserialiser trips over
        raise BundleError(f"{path}: is no ONNX graph; export again or restore the file") from error


def external_tensors(model: Any) -> list[tuple[Any, Any]]:
    """Initializers of an onnx_ir model that lie in other files, each with its tensor."""
    import onnx_ir as ir

    values = [(value, value.const_value) for value in model.graph.initializers.values()]
    return [(value, tensor) for value, tensor in values if isinstance(tensor, ir.ExternalTensor)]


@cache
def _linked() -> Any:
    import onnx_ir as ir

    class LinkedTensor(ir.ExternalTensor):
        """External data in a file whose name was checked; onnx_ir checks nothing itself where no folder is given."""

        def __init__(self, tensor: ir.ExternalTensor, file: Path) -> None:
            super().__init__(
                tensor.location, tensor.offset, tensor.length, tensor.dtype, shape=tensor.shape, name=tensor.name or ""
            )
            self._file = str(file)

        @property
        def path(self) -> str:
            return self._file

    return LinkedTensor
