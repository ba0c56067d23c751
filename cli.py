"""kvparity on the command line: parse, call one function, print, exit 0 match, 1 mismatch, 2 could not tell."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

import kvparity

DEFAULT_MODEL = Path(kvparity.__file__).parent / "tinygemma4text3m" / "hf"


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="kvparity")
def cli() -> None:
    """Export decoders to ONNX with explicit KV caches, and prove that every runtime computes what PyTorch computes.

    Exit codes: 0 match, 1 mismatch, 2 could not tell (usage, missing file or engine, failed export, crash).
    """


@cli.command()
@click.argument("model", required=False)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Bundle folder  [default: artifacts/NAME]")
@click.option("--subfolder", help="Folder inside the checkpoint that holds the model.")
@click.option("--revision", help="Hub revision.")
@click.option("--layout", type=click.Choice(["dynamic", "static", "shared"]), default="dynamic", show_default=True)
@click.option(
    "--profile", type=click.Choice(["bare", "portable", "modern", "ort"]), default="portable", show_default=True
)
@click.option(
    "--provider",
    type=click.Choice(["cpu", "cuda", "webgpu"]),
    default="cpu",
    show_default=True,
    help="What profile ort picks operators for.",
)
@click.option("--sliding-cache", type=click.Choice(["bounded", "full"]), default="bounded", show_default=True)
@click.option("--dtype", type=click.Choice(["float32", "float16", "bfloat16"]), default="float32", show_default=True)
@click.option("--opset", type=int, help="Default-domain opset  [default: the profile's]")
@click.option("--max-len", type=int, help="Static layout: buffer rows  [default: the model's positions, at most 1024]")
@click.option("--chunk", type=int, help="Static layout: tokens per prefill call  [default: 64]")
@click.option("--batch", type=int, help="Static layout: batch rows  [default: 1]")
@click.option("--logits", type=click.Choice(["all", "last"]), default="all", show_default=True)
@click.option(
    "--quantize",
    type=click.Choice(["none", "int4", "int8", "int8-dynamic"]),
    default="none",
    show_default=True,
    help="Linear layers, experts and embeddings in blocks, a GGUF file's own where they fit; or products of integers.",
)
@click.option("--block-size", type=int, default=32, show_default=True, help="Columns that share a scale.")
@click.option("--keep", metavar="KIND,…", default="", help="Kinds of layers that stay as they are, such as embed.")
@click.option(
    "--quantizer", type=click.Choice(["rtn", "k_quant"]), default="rtn", show_default=True, help="How to round."
)
@click.option(
    "--accuracy-level",
    type=click.Choice(["0", "4"]),
    default="0",
    show_default=True,
    help="4 lets the engine round activations to int8.",
)
@click.option("--text", type=click.Path(path_type=Path), help="Measure quantisation on this file  [default: stories]")
@click.option("--vectors", type=click.Choice(["all", "float32", "none"]), default="all", show_default=True)
@click.option("--vectors-mb", type=int, default=256, show_default=True, help="Most megabytes of reference vectors.")
@click.option(
    "--vectors-mode",
    type=click.Choice(["auto", "whole", "streamed"]),
    default="auto",
    show_default=True,
    help="PyTorch's model in memory, or one module's weights at a time: the same bits.",
)
@click.option(
    "--weights",
    type=click.Choice(["copy", "link", "reference"]),
    default="copy",
    show_default=True,
    help="Link clones the files' blocks where the disk can; reference writes the bundle into the checkpoint's folder.",
)
@click.option("--limit", type=int, help="Longest case in tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print the stages and the bundle as JSON.")
def export(model: str | None, output: Path | None, as_json: bool, **options: Any) -> None:
    """Export MODEL (a folder, a GGUF file, or a hub id; the shipped tiny checkpoint if left out) to a bundle."""
    from kvparity.exporter.trace.process import Tracer

    with Tracer() as tracer:  # it loads torch while this process does
        _export(model, output, as_json, tracer, options)


def _export(model: str | None, output: Path | None, as_json: bool, tracer: Any, options: dict[str, Any]) -> None:
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.console import Progress, print_bundle
    from kvparity.exporter.contract.spec import ExportOptions
    from kvparity.exporter.export import export as run_export
    from kvparity.runners.reference.record import recorder

    checkpoint = resolve(
        model or str(DEFAULT_MODEL), subfolder=options.pop("subfolder"), revision=options.pop("revision")
    )
    target = output or Path("artifacts") / f"{Path(checkpoint.source).stem}-{_way(options)}"
    if options["weights"] == "reference":
        target = output or checkpoint.folder
    limit, text = options.pop("limit"), options.pop("text")
    vectors, megabytes = options.pop("vectors"), options.pop("vectors_mb")
    options["keep"] = tuple(filter(None, options["keep"].split(",")))
    options["accuracy_level"] = int(options["accuracy_level"])
    mode = options.pop("vectors_mode")
    progress = Progress()
    record = recorder(float64=vectors == "all", budget_mb=megabytes, mode=mode, on_case=progress.case)
    try:
        bundle = run_export(
            *(checkpoint, target, ExportOptions(**options)),
            record=None if vectors == "none" else record,
            report=progress.stage,
            limit=limit,
            text=text,
            tracer=tracer,
        )
    finally:
        progress.stop()
    print_bundle(bundle, progress.stages, str(target), as_json=as_json)


def _program() -> str:
    """How the reader called this program: as the installed command, or as the file in a clone."""
    called = Path(sys.argv[0]).stem
    return called if called == "kvparity" else "python cli.py"


def _way(options: dict[str, Any]) -> str:
    """Profile, and the layout, provider, dtype and quantisation where they are not the default."""
    defaults = {"layout": "dynamic", "provider": "cpu", "dtype": "float32", "quantize": "none"}
    return "-".join([options["profile"], *(options[key] for key in defaults if options[key] != defaults[key])])


_RUNNERS = click.option(
    "-r", "--runner", "runners", multiple=True, help="Runner, NAME:key=value,…, or all; repeatable  [default: ort]"
)
_JUDGE_OPTIONS = (
    "outputs",
    "budget",
    "live",
    "checkpoint",
    "exact",
    "exact_tol",
    "identities",
    "locate",
    "save_trace",
    "allow_modified",
)


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@_RUNNERS
@click.option("-c", "--case", "cases", multiple=True, help="Case name or glob pattern; repeatable  [default: all]")
@click.option("--output", "outputs", multiple=True, help="Output or glob pattern, as logits  [default: all]")
@click.option("--tol", default="1e-4", show_default=True, help="Largest difference that passes, or 'auto'.")
@click.option(
    "--budget",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="With 'auto': multiple of PyTorch's own error.",
)
@click.option("--live", is_flag=True, help="Run PyTorch now instead of reading recorded vectors.")
@click.option(
    "--checkpoint", type=click.Path(path_type=Path), help="Run PyTorch now, with the checkpoint that is here."
)
@click.option("--exact", is_flag=True, help="Also compare the graphs in float64 with PyTorch in float64.")
@click.option("--exact-tol", type=click.FloatRange(min=0), default=1e-10, show_default=True, help="Gate of --exact.")
@click.option("--self", "identities", is_flag=True, help="Compare each runner with itself: chunks, padding, reruns.")
@click.option("--locate", is_flag=True, help="Find the layer, operator and position where a difference begins.")
@click.option(
    "--trace", "traces", multiple=True, type=click.Path(path_type=Path), help="Judge a saved .npz; repeatable."
)
@click.option("--save-trace", type=click.Path(path_type=Path), help="Save what the runner returned.")
@click.option("--json", "json_file", metavar="FILE", help="Write the report as JSON; - for stdout.")
@click.option("--html", type=click.Path(path_type=Path), help="Write the report as one HTML page.")
@click.option("--junit", type=click.Path(path_type=Path), help="Write the report as JUnit XML.")
@click.option("--markdown", type=click.Path(path_type=Path), help="Write the report as Markdown.")
@click.option("--model-explorer", type=click.Path(path_type=Path), help="Write errors as Model Explorer node data.")
@click.option("--allow-modified", is_flag=True, help="Judge files that differ from the manifest.")
def compare(bundle: Path, tol: str, **given: Any) -> int:
    """Compare what runners compute from BUNDLE with what PyTorch computes, at every position and cache row."""
    from kvparity.runners.compare.command import Outputs, compare, parse_tolerance, runner_specs
    from kvparity.runners.compare.judge import JudgeOptions

    try:
        tolerance = parse_tolerance(tol)
    except ValueError as error:
        raise click.BadParameter(f"{tol!r} is neither a number of at least 0 nor 'auto'", param_hint="--tol") from error
    options = JudgeOptions(
        runners=runner_specs(given["runners"], given["traces"]),
        cases=given["cases"],
        tol=tolerance,
        shown_bundle=str(bundle),
        program=_program(),
        **{key: given[key] for key in _JUDGE_OPTIONS},
    )
    files = {key: given[key] for key in ("html", "junit", "markdown", "model_explorer")}
    return compare(bundle, options, Outputs(json=given["json_file"], **files))


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("-p", "--prompt", default="Once upon", show_default=True)
@click.option("-n", "--tokens", type=click.IntRange(min=1), default=80, show_default=True, help="Most new tokens.")
@click.option("-r", "--runner", default="ort", show_default=True, help="Runner, or NAME:key=value,…")
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default=True, help="0 is greedy.")
@click.option("--top-k", type=click.IntRange(min=0), default=0, show_default=True, help="0 keeps all tokens.")
@click.option("--top-p", type=click.FloatRange(0, 1, min_open=True), default=1.0, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, also where the model has a chat template.")
@click.option("--allow-modified", is_flag=True, help="Run files that differ from the manifest.")
def run(bundle: Path, prompt: str, tokens: int, runner: str, raw: bool, allow_modified: bool, **sampling: Any) -> int:
    """Continue a prompt with the graphs of BUNDLE alone: no PyTorch, text streamed to stdout."""
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.runners.base import parse_runner
    from kvparity.runners.decode.generate import Sampling, write_text

    opened = Bundle.open(bundle, allow_modified=allow_modified)
    return write_text(opened, prompt, tokens, parse_runner(runner), Sampling(**sampling), raw=raw)


@cli.command()
@click.argument("bundles", type=click.Path(path_type=Path), nargs=-1, required=True, metavar="BUNDLE...")
@_RUNNERS
@click.option(
    "--context",
    "contexts",
    type=click.IntRange(min=1),
    multiple=True,
    default=(64, 512, 1000),
    show_default=True,
    help="Tokens in the cache when decoding is timed; repeatable.",
)
@click.option("--prefill", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens of the prefill.")
@click.option("--rounds", type=click.IntRange(min=1), default=7, show_default=True, help="Visits of every subject.")
@click.option("--steps", type=click.IntRange(min=1), default=16, show_default=True, help="Decode steps per visit.")
@click.option("--json", "json_file", metavar="FILE", help="Write the measures as JSON; - for stdout.")
@click.option("--html", type=click.Path(path_type=Path), help="Write a page with a plot of time against context.")
@click.option("--allow-modified", is_flag=True, help="Time bundles whose files differ from the manifest.")
def bench(
    bundles: tuple[Path, ...],
    runners: tuple[str, ...],
    json_file: str | None,
    html: Path | None,
    allow_modified: bool,
    **given: Any,
) -> int:
    """Time decoding and prefill of every BUNDLE on every runner, side by side in one run."""
    from kvparity.runners.bench.bench import BenchOptions, bench_command

    options = BenchOptions(**given)
    return bench_command(bundles, runners, options, json_file, html=html, allow_modified=allow_modified)


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path), metavar="BUNDLE|CHECKPOINT")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option(
    "--range",
    "range_dtype",
    type=click.Choice(["auto", "float16", "bfloat16", "float32"]),
    is_flag=False,
    flag_value="auto",
    help="Play cases and show how far values reach in a dtype: what overflows, what is lost.",
)
@click.option("-c", "--case", "cases", multiple=True, help="With --range: case name or glob pattern; repeatable.")
@click.option("--allow-modified", is_flag=True, help="Show a bundle whose files differ from the manifest.")
def inspect(bundle: Path, as_json: bool, range_dtype: str | None, cases: tuple[str, ...], allow_modified: bool) -> None:
    """Show what is in BUNDLE, or what architecture features a CHECKPOINT exercises."""
    from kvparity.exporter.checkpoint.inspect_checkpoint import is_checkpoint, print_checkpoint
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.runners.inspect.bundle import inspect_json, print_inspection

    if is_checkpoint(bundle):
        print_checkpoint(bundle, as_json=as_json)
        return
    opened = Bundle.open(bundle, allow_modified=allow_modified)
    if range_dtype is not None:
        from kvparity.runners.inspect.ranges import measure_ranges, print_ranges, ranges_json

        report = measure_ranges(opened, range_dtype, cases)
        click.echo(ranges_json(report)) if as_json else print_ranges(report, str(bundle))
    elif as_json:
        click.echo(inspect_json(opened))
    else:
        print_inspection(opened, str(bundle))


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-c", "--case", "cases", multiple=True, help="Case name or glob pattern; repeatable  [default: the first]"
)
@click.option("--step", type=click.IntRange(min=0), help="One call of each case, from 0  [default: all]")
@click.option("-n", "--name", "names", multiple=True, help="Glob pattern of values, as 'layers.2.*'; repeatable.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the values as a trace (.npz).")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.option("--allow-modified", is_flag=True, help="Read a bundle whose files differ from the manifest.")
def probes(
    bundle: Path,
    cases: tuple[str, ...],
    step: int | None,
    names: tuple[str, ...],
    output: Path | None,
    as_json: bool,
    allow_modified: bool,
) -> None:
    """Show the values inside the model of a recorded case, or write them for the author of an engine."""
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.runners.inspect.probes import inside, print_probes, probes_json, save_probes

    opened = Bundle.open(bundle, allow_modified=allow_modified)
    found = tuple(inside(opened, cases, step))
    if output is not None:
        count = save_probes(opened, found, output, names)
        click.echo(f"{count} values of {len(found)} call{'' if len(found) == 1 else 's'} in {output}")
    elif as_json:
        click.echo(probes_json(found, names))
    else:
        print_probes(found, names)


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--to", "tool", required=True, metavar="TOOL", help="Who shall load it; `list packages` names them.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The folder  [default: BUNDLE-TOOL]")
@click.option("--allow-modified", is_flag=True, help="Package files that differ from the manifest.")
def package(bundle: Path, tool: str, output: Path | None, allow_modified: bool) -> None:
    """Turn BUNDLE into a folder that another tool loads as it is, with nothing of ours."""
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.exporter.contract.package import write_package

    beside = bundle if bundle.name else bundle.absolute()
    target = output or beside.with_name(f"{beside.name}-{tool}")
    opened = Bundle.open(bundle, allow_modified=allow_modified)
    for path in write_package(opened, tool, target):
        click.echo(f"  {(target / path).stat().st_size / 1e6:9.2f} MB  {path.as_posix()}")
    click.echo(f"package  {target}")


@cli.command("list")
@click.argument("what", type=click.Choice(["runners", "cases", "families", "metrics", "packages"]))
def list_(what: str) -> None:
    """List runners (installed or how to install), cases, model families, metrics or packages."""
    from kvparity.runners.inspect import listing

    if what == "runners":
        for row in listing.list_runners():
            click.echo(f"{row.name:<16} {row.version if row.available else 'absent':<12} {row.note}; takes {row.takes}")
        return
    for name, note in getattr(listing, f"list_{what}")():
        click.echo(f"{name:<16} {note}")


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder  [default: artifacts/tinygemma4text3m]")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps  [default: the shipped checkpoint's]")
@click.option("--seed", type=int, help="Of weights, stories and order  [default: the shipped checkpoint's]")
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads; bytes are reproducible per thread count.")
def train(output: Path | None, **given: int | None) -> None:
    """Rebuild the tiny checkpoint from stories that it makes up itself (about half an hour on 2 cores)."""
    from kvparity.exporter.tinygemma.console import train_command

    train_command(output or DEFAULT_MODEL.parent, {key: value for key, value in given.items() if value is not None})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and map every outcome to an exit code.

    Args:
        arguments: Words after the program name; ``sys.argv`` where None.

    Returns:
        0 success or match, 1 mismatch, 2 anything that kept us from telling.
    """
    from kvparity.exporter.contract.errors import KvparityError

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
    except ModuleNotFoundError as error:
        from kvparity.exporter.contract.extras import missing_package

        click.echo(f"error: {missing_package(error.name or str(error))}", err=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")
    except Exception as error:
        if os.environ.get("KVPARITY_TRACEBACK"):
            raise
        click.echo(f"error: {type(error).__name__}: {error} (KVPARITY_TRACEBACK=1 shows where)", err=True)
    return 2


if __name__ == "__main__":
    sys.exit(main())
