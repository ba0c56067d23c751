"""kvparity on the command line: parse, call one function, print, exit 0 match, 1 mismatch, 2 could not tell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

DEFAULT_MODEL = Path(__file__).parent / "artifacts" / "tinygemma4text3m" / "hf"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="kvparity")
def cli() -> None:
    """Export decoders to ONNX with explicit KV caches, and prove that every runtime computes what PyTorch computes.

    Exit codes: 0 match, 1 mismatch, 2 could not tell (usage, missing file or engine, failed export, crash).
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and map every outcome to an exit code.

    Args:
        arguments: Words after the program name; ``sys.argv`` where None.

    Returns:
        0 success or match, 1 mismatch, 2 anything that kept us from telling.
    """
    from exporter.errors import KvparityError

    try:
        result = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
    except (click.Abort, KeyboardInterrupt):
        click.echo("error: interrupted", err=True)
    except KvparityError as error:
        click.echo(f"error: {error}", err=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    except Exception as error:
        if os.environ.get("KVPARITY_TRACEBACK"):
            raise
        click.echo(f"error: {type(error).__name__}: {error} (KVPARITY_TRACEBACK=1 shows where)", err=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
