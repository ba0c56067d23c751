"""What ``run`` prints: the text on stdout as it comes, speed on stderr."""

from __future__ import annotations

import sys

from kvparity.runners.decode.generate import Generation

__all__ = ["print_speed", "print_text"]


def print_text(piece: str) -> None:
    """Print a piece of text at once."""
    print(piece, end="", flush=True)


def print_speed(made: Generation, runner: str) -> None:
    """End the text's line, and say how fast it came."""
    print()
    print(
        f"{len(made.tokens)} tokens ({made.ended}), "
        f"prefill of {len(made.prompt)} in {made.prefill_seconds * 1000:.1f} ms, "
        f"decode {made.tokens_per_second:.0f} tokens/s on {runner}{_drafts(made)}",
        file=sys.stderr,
    )


def _drafts(made: Generation) -> str:
    """What became of the drafts."""
    if made.drafts is None:
        return ""
    drafts = made.drafts
    share = f" ({drafts.accepted / drafts.drafted:.0%})" if drafts.drafted else ""
    return (
        f", {drafts.accepted} of {drafts.drafted} drafted tokens accepted{share}, "
        f"{len(made.tokens) / max(drafts.calls, 1):.2f} tokens a call"
    )
