"""What ``bench`` measures; standard library only."""

from __future__ import annotations

from dataclasses import dataclass

from kvparity.exporter.contract.errors import OptionError

__all__ = ["BenchOptions"]


@dataclass(frozen=True)
class BenchOptions:
    """What is measured.

    Attributes:
        contexts: Tokens in the cache when decoding is timed.
        prefill: Tokens of the timed prefill.
        rounds: Visits of every subject.
        steps: Decode steps timed in a row at each context.
    """

    contexts: tuple[int, ...] = (64, 512, 1000)
    prefill: int = 512
    rounds: int = 7
    steps: int = 16

    def __post_init__(self) -> None:
        if not self.contexts or min(*self.contexts, self.prefill, self.rounds, self.steps) < 1:
            numbers = f"contexts {self.contexts}, prefill {self.prefill}, rounds {self.rounds}, steps {self.steps}"
            raise OptionError(f"every number of a bench is at least 1; found {numbers}")
