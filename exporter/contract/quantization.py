"""What was quantised in a bundle and what that cost: part of its manifest; standard library only."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Quality", "Quantization"]


@dataclass(frozen=True)
class Quality:
    """How far PyTorch with the quantised weights is from PyTorch with the ones that they were made of, on some text.

    Attributes:
        text: What was read.
        positions: Tokens predicted.
        context: Tokens of a window; each window is read alone.
        top1: Share of positions whose likeliest token is the same.
        kl_mean: Mean KL(before || after) of the next-token distributions, in nats.
        kl_p99: Its 99th percentile.
        kl_max: Its largest value.
        perplexity_before: Of the text, by the weights as they were; None for tokens that are no text.
        perplexity_after: By the quantised weights.
    """

    text: str
    positions: int
    context: int
    top1: float
    kl_mean: float
    kl_p99: float
    kl_max: float
    perplexity_before: float | None = None
    perplexity_after: float | None = None

    def sentence(self) -> str:
        """All of it in words."""
        perplexity = ""
        if self.perplexity_before is not None and self.perplexity_after is not None:
            change = 100 * (self.perplexity_after / self.perplexity_before - 1)
            perplexity = f", perplexity {self.perplexity_before:.4g} → {self.perplexity_after:.4g} ({change:+.2g} %)"
        return (
            f"top-1 the same at {100 * self.top1:.4g} % of {self.positions:,} positions, "
            f"KL mean {self.kl_mean:.2g}, p99 {self.kl_p99:.2g}, max {self.kl_max:.2g} nats{perplexity} ({self.text})"
        )


@dataclass(frozen=True)
class Quantization:
    """The quantised weights of a bundle.

    Attributes:
        bits: Codes' bits by kind of layer; where a kind has several, the largest.
        quantised: How many weights.
        elements: How many numbers they hold.
        kept: Kinds of matrices that stay as they are: those to be kept, and those that have no quantised form.
        from_source: How many have exactly the values that the source, a GGUF file, holds quantised; None for others.
        bytes_before: Size of the weights file without quantisation.
        quality: What it cost; None where it was not measured.
        dynamic: Kinds whose products are of integers: one scale per row, activations rounded to eight bits per call.
    """

    bits: dict[str, int]
    quantised: int
    elements: int
    kept: tuple[str, ...]
    from_source: int | None
    bytes_before: int
    quality: Quality | None = None
    dynamic: tuple[str, ...] = ()

    def lines(self, bytes_after: int) -> list[str]:
        """What a reader wants to know, a sentence each.

        Args:
            bytes_after: Size of the weights file.
        """
        by_bits = {bits: [kind for kind, own in self.bits.items() if own == bits] for bits in self.bits.values()}
        kinds = "; ".join(f"int{bits}: {', '.join(by_bits[bits])}" for bits in sorted(by_bits))
        kept = f"; as they were: {', '.join(self.kept)}" if self.kept else ""
        share = bytes_after / self.bytes_before
        lines = [f"quantised {self.quantised} weights, the file {share:.3f} of its size; {kinds}{kept}"]
        if self.dynamic:
            lines.append(f"products of integers, activations rounded to int8 call by call: {', '.join(self.dynamic)}")
        if self.from_source == self.quantised:
            lines.append("all of them hold exactly the GGUF file's values")
        elif self.from_source is not None:
            lines.append(
                f"{self.from_source} of {self.quantised} hold exactly the GGUF file's values, "
                "the others' types do not fit and were rounded anew"
            )
        if self.quality is not None:
            lines.append(f"quantisation: {self.quality.sentence()}")
        return lines
