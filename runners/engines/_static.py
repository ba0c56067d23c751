"""Static shapes: one compiled graph per set of input shapes, up to a limit, for engines that need them fixed.

A decode loop over growing caches meets a new shape at every step, so that a case may need more graphs than the limit.
It is then refused, with the reason: never passed, and never half judged without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from kvparity.exporter.contract.bundle import GraphEntry
from kvparity.exporter.contract.errors import EngineUnavailableError, TraceError
from kvparity.runners.base import Array
from kvparity.runners.engines._session import Run, first_line

__all__ = ["REFUSED", "CompileShapes", "PerShape", "shapes_limit", "symbol_values"]

REFUSED = "refused: "
Shapes = Mapping[str, tuple[int, ...]]
CompileShapes = Callable[[Shapes], Run]


class PerShape:
    """Compiles a graph when new shapes are fed, and keeps what it compiled.

    Args:
        name: Runner name, for messages.
        entry: The graph.
        compile_shapes: Makes the graph into a function for inputs of exactly these shapes.
        budget: Compilations left; shared by all graphs of a session.
        empty: Whether an input may have no rows; a first past has none.
    """

    def __init__(
        self, name: str, entry: GraphEntry, compile_shapes: CompileShapes, budget: Budget, *, empty: bool = True
    ) -> None:
        self._name, self._entry, self._compile, self._budget = name, entry, compile_shapes, budget
        self._empty = empty
        self._made: dict[tuple[tuple[int, ...], ...], Run] = {}

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run the graph, compiling it first if need be.

        Raises:
            TraceError: Too many shapes, an input without rows, or the compiler failed.
        """
        shapes = {port.name: tuple(inputs[port.name].shape) for port in self._entry.spec.inputs}
        key = tuple(shapes.values())
        if key not in self._made:
            empty = next((name for name, shape in shapes.items() if 0 in shape), None)
            if empty and not self._empty:
                raise TraceError(f"{REFUSED}{self._name} takes no tensor without rows, and {empty} has none")
            self._budget.take(self._name)
            try:
                self._made[key] = self._compile(shapes)
            except (EngineUnavailableError, TraceError):
                raise
            except Exception as error:  # each compiler has exceptions of its own
                kind = self._entry.spec.kind
                raise TraceError(
                    f"{self._name} cannot compile {kind}.onnx for {shapes}: {first_line(error)}"
                ) from error
        return self._made[key](inputs)


class Budget:
    """How many graphs a session may still compile."""

    def __init__(self, limit: int) -> None:
        self._limit, self._left = limit, limit

    def take(self, name: str) -> None:
        """Use one.

        Raises:
            TraceError: None is left.
        """
        if self._left < 1:
            raise TraceError(
                f"{REFUSED}{name} has fixed shapes, and this case needs more than the {self._limit} compiled graphs "
                "that the setting shapes allows"
            )
        self._left -= 1


def shapes_limit(options: Mapping[str, str], default: int) -> Budget:
    """The setting ``shapes``: how many graphs may be compiled in a session.

    Raises:
        EngineUnavailableError: It is not a number.
    """
    text = options.get("shapes", str(default))
    if not text.isdigit():
        raise EngineUnavailableError(f"shapes {text!r} is not a number")
    return Budget(int(text))


def symbol_values(entry: GraphEntry, shapes: Shapes) -> dict[str, int]:
    """What each symbolic dimension of a graph's inputs is for these shapes."""
    return {
        symbol: size
        for port in entry.spec.inputs
        for symbol, size in zip(port.shape, shapes[port.name], strict=True)
        if isinstance(symbol, str)
    }
