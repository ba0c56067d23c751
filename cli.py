"""kvparity on the command line: parse, call one function, print, exit 0 match, 1 mismatch, 2 could not tell."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

import kvparity
from kvparity import api
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.exporter.tinygemma.options import TrainOptions
from kvparity.options import options_of
from kvparity.runners.bench.options import BenchOptions
from kvparity.runners.compare.options import JudgeOptions
from kvparity.runners.decode.sampling import Sampling

EXIT_CODES = {"match": 0, "mismatch": 1, "error": 2}
FILE = click.Path(path_type=Path)
COUNT = click.IntRange(min=1)
OF_A_BUNDLE = (
    "identities",
    "against",
    "checkpoint",
    "live",
    "save_trace",
    "outputs",
    "allow_modified",
)  # what judge does not ask
CASES = {"flags": ("-c", "--case"), "metavar": "PATTERN"}
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 120}


@click.group(context_settings=SETTINGS)
@click.version_option(package_name="kvparity")
def cli() -> None:
    """Export decoders to ONNX with explicit KV caches, and prove that every runtime computes what PyTorch computes.

    Exit codes: 0 match, 1 mismatch, 2 could not tell (usage, missing file or engine, failed export, crash).
    """


def command(
    *examples: str, name: str | None = None, group: click.Group = cli
) -> Callable[[Callable[..., Any]], click.Command]:
    """A command of a group, with examples at the end of its help."""
    lines = "\n".join(f"  kvparity {example}" for example in examples)
    return group.command(name, epilog=f"\b\nExample:\n{lines}", context_settings=SETTINGS)


ALLOW_MODIFIED = click.option("--allow-modified", is_flag=True, help="Take files that differ from the manifest.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
BUNDLE = click.argument("bundle", type=FILE)


class Tolerance(click.ParamType):  # type: ignore[type-arg]
    """A finite number of at least 0, or ``auto``."""

    name = "NUMBER|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse it."""
        if value == "auto":
            return value
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not 0 <= number < math.inf:
            self.fail(f"{value!r} is neither a number of at least 0 nor 'auto'", param, ctx)
        return number


@command("export", "export checkpoint/ -o bundle --profile ort --quantize int4")
@click.argument("model", required=False)
@click.option("-o", "--output", type=FILE, help="Bundle folder  [default: artifacts/NAME]")
@options_of(
    ExportOptions,
    keep={"multiple": False, "type": str, "metavar": "KIND,…", "default": ""},
    int8={"multiple": False, "type": str, "metavar": "KIND,…", "default": "vocabulary"},
)
@options_of(api.export, leave=("model", "output", "options", "on_stage", "on_sequence"))
@AS_JSON
def export(model: str | None, output: Path | None, as_json: bool, **options: Any) -> None:
    """Export MODEL (a folder, a GGUF file, or a hub id; the shipped tiny checkpoint if left out) to a bundle."""
    from kvparity.exporter.console import Progress, print_bundle

    progress = Progress()
    try:
        options |= {name: tuple(filter(None, options[name].split(","))) for name in ("keep", "int8")}
        bundle = kvparity.export(model, output, on_stage=progress.stage, on_sequence=progress.sequence, **options)
    finally:
        progress.stop()
    print_bundle(bundle, progress.stages, as_json=as_json)


RUNNERS = click.option(
    "-r", "--runner", "runners", multiple=True, help="NAME or NAME:key=value,…, or all; repeatable  [default: ort]"
)
REPORTS = {
    "json": "JSON; - prints it alone, as for every format",
    "html": "one HTML page",
    "junit": "JUnit XML",
    "markdown": "Markdown",
}


def reports(command: Callable[..., Any]) -> Callable[..., Any]:
    """One option per format of a report."""
    for form, words in reversed(REPORTS.items()):
        command = click.option(f"--{form}", metavar="FILE", help=f"Write the report as {words}.")(command)
    verbose = "Print every case also where several runners were compared."
    return click.option("-v", "--verbose", is_flag=True, help=verbose)(command)


@command(
    "compare bundle",
    "compare bundle --runner all --tol auto --exact --locate --html report.html",
    "compare float16/ float32/ -r openvino",
    "compare bundle --against-trace other-engine.npz",
)
@BUNDLE
@click.argument("other", type=FILE, required=False)
@RUNNERS
@options_of(
    JudgeOptions,
    leave=("runners", "shown_bundle", "program", "timed", "against"),
    cases=CASES,
    outputs={"flags": ("--output",), "metavar": "PATTERN"},
    tol={"type": Tolerance()},
    budget={"type": click.FloatRange(min=0, min_open=True)},
    exact_tol={"type": click.FloatRange(min=0)},
    identities={"flags": ("--self",)},
)
@click.option("--trace", "traces", multiple=True, type=FILE, help="Judge a recording: .npz, safetensors or folder.")
@click.option("--against-trace", type=FILE, metavar="FILE", help="Compare with this recording instead of PyTorch.")
@click.option("--names", type=click.Choice(["llama.cpp", "mlx", "hooks"]), help="Whose names the recording's keys are.")
@reports
@click.option("--model-explorer", type=FILE, help="Write errors as Model Explorer node data.")
def compare(
    bundle: Path,
    other: Path | None,
    against_trace: Path | None,
    runners: tuple[str, ...],
    model_explorer: Path | None,
    **given: Any,
) -> int:
    """Compare what runners compute from BUNDLE with what PyTorch computes, at every position and cache row.

    With OTHER, another bundle of the same model, with what the same runners compute from that.
    """
    from kvparity.runners.compare.console import progress

    shown = {name: given.pop(name) for name in (*REPORTS, "verbose")}
    if other is not None and against_trace is not None:
        raise click.UsageError("OTHER and --against-trace are two references; give one")
    with progress() as say:
        against = other or against_trace
        report = kvparity.compare(bundle, runners, against=against, say=say, program=_program(), **given)
    if model_explorer is not None:
        from kvparity.runners.report.model_explorer import save_model_explorer

        save_model_explorer(report, kvparity.open_bundle(bundle, allow_modified=True), model_explorer)
    return _show(report, **shown)


@command("judge model-onnx/ --against model/", "judge model.onnx --against model.gguf -o judged --html report.html")
@click.argument("package", type=FILE)
@options_of(
    api.judge,
    leave=("package", "say", "runners"),
    against={"flags": ("-a", "--against"), "type": str, "metavar": "CHECKPOINT"},
    output={"flags": ("-o", "--output"), "type": FILE},
    limit_seconds={"type": click.FloatRange(min=0, min_open=True)},
    limit_mb={"type": click.IntRange(min=0)},
)
@RUNNERS
@options_of(
    JudgeOptions,
    leave=(*OF_A_BUNDLE, "runners", "shown_bundle", "program", "timed"),
    cases=CASES,
    tol={"type": Tolerance()},
    budget={"type": click.FloatRange(min=0, min_open=True)},
    exact_tol={"type": click.FloatRange(min=0)},
)
@reports
def judge(package: Path, runners: tuple[str, ...], against: str | None, output: Path | None, **given: Any) -> int:
    """Judge PACKAGE, an ONNX decoder that somebody else exported, against the checkpoint that it is of."""
    from kvparity.runners.compare.console import progress

    shown = {name: given.pop(name) for name in (*REPORTS, "verbose")}
    with progress() as say:
        report = kvparity.judge(package, against, output, runners, say=say, program=_program(), **given)
    return _show(report, **shown)


@cli.group(
    "report",
    context_settings=SETTINGS,
    epilog="\b\nExample:\n  kvparity report merge phone.json laptop.json --html both.html\n"
    "  kvparity report diff before.json after.json",
)
def report_() -> None:
    """Show, merge or diff reports that `compare --json FILE` or `judge --json FILE` wrote."""


REPORT = click.argument("report", type=FILE, metavar="FILE.json")


@command("report show report.json", "report show report.json --html report.html", name="show", group=report_)
@REPORT
@reports
def show(report: Path, **shown: Any) -> int:
    """Print a report again, or write it in other formats; the exit code is the one that it was made with."""
    return _show(kvparity.Report.load(report), **shown)


@command("report merge phone.json laptop.json --html both.html", name="merge", group=report_)
@click.argument("files", type=FILE, nargs=-1, required=True, metavar="FILE.json...")
@reports
def merge(files: tuple[Path, ...], **shown: Any) -> int:
    """Make one matrix of reports of one bundle: of other machines, engines, versions or cases."""
    return _show(kvparity.merge_reports(files), **shown)


@command("report diff ort-1.27.json ort-1.32.json", name="diff", group=report_)
@click.argument("old", type=FILE, metavar="OLD.json")
@click.argument("new", type=FILE, metavar="NEW.json")
@AS_JSON
def diff(old: Path, new: Path, as_json: bool) -> int:
    """Say what became better, worse, new or gone between two reports; exit code 1 where anything became worse."""
    found = kvparity.diff_reports(old, new)
    click.echo(json.dumps(asdict(found), indent=1) if as_json else str(found))
    return EXIT_CODES[found.verdict]


def _show(report: kvparity.Report, *, verbose: bool, **files: str | None) -> int:
    """Write the files that were asked for, and print the report, or alone what is to go to ``-``."""
    printed = [form for form, path in files.items() if path == "-"]
    if len(printed) > 1:
        raise click.UsageError(f"--{' and --'.join(printed)} cannot both be printed; give a file to one of them")
    for form, path in files.items():
        if path not in (None, "-"):
            report.save(str(path), form)
    form = printed[0] if printed else "verbose" if verbose else "text"
    from kvparity.runners.compare.console import print_report

    print_report(report, form)
    return EXIT_CODES[report.verdict]


def _program() -> str:
    """How the reader called this program: as the installed command, or as the file in a clone."""
    called = Path(sys.argv[0]).stem
    return called if called == "kvparity" else "python cli.py"


@command(
    "run bundle -p 'Once upon' -n 60", "run bundle -r openvino --temperature 0.8 --top-p 0.9", "run bundle --draft 4"
)
@BUNDLE
@options_of(
    api.run,
    leave=("bundle", "on_text"),
    prompt={"flags": ("-p", "--prompt")},
    tokens={"flags": ("-n", "--tokens"), "type": COUNT},
    runner={"flags": ("-r", "--runner"), "type": str},
    draft={"type": click.IntRange(min=0)},
)
@options_of(
    Sampling,
    temperature={"type": click.FloatRange(min=0)},
    top_k={"type": click.IntRange(min=0)},
    top_p={"type": click.FloatRange(0, 1, min_open=True)},
)
def run(bundle: Path, prompt: str, **given: Any) -> None:
    """Continue a prompt with the graphs of BUNDLE alone: no PyTorch, text streamed to stdout."""
    from kvparity.runners.decode.console import print_speed, print_text

    print_speed(kvparity.run(bundle, prompt, on_text=print_text, **given), given["runner"])


@command("bench bundle", "bench float32/ int4/ -r ort -r openvino --context 512")
@click.argument("bundles", type=FILE, nargs=-1, required=True, metavar="BUNDLE...")
@RUNNERS
@options_of(
    BenchOptions,
    contexts={"flags": ("--context",), "type": COUNT},
    prefill={"type": COUNT},
    rounds={"type": COUNT},
    steps={"type": COUNT},
)
@click.option("--json", "json_file", metavar="FILE", help="Write the measures as JSON; - prints them alone.")
@ALLOW_MODIFIED
def bench(
    bundles: tuple[Path, ...], runners: tuple[str, ...], json_file: str | None, allow_modified: bool, **given: Any
) -> None:
    """Time decoding and prefill of every BUNDLE on every runner, side by side in one run."""
    from kvparity.runners.bench.console import print_measures

    def say(line: str) -> None:
        click.echo(line, err=True)

    measures = kvparity.bench(bundles, runners, allow_modified=allow_modified, say=say, **given)
    print_measures(measures, BenchOptions(**given), json_file)


@command("inspect bundle", "inspect bundle --range float16", "inspect checkpoint/")
@click.argument("path", type=FILE, metavar="BUNDLE|CHECKPOINT")
@click.option(
    "--range",
    "dtype",
    type=click.Choice(["auto", "float16", "bfloat16", "float32"]),
    is_flag=False,
    flag_value="auto",
    help="Play cases and show how far values reach in a dtype: what overflows, what is lost.",
)
@click.option("-c", "--case", "cases", multiple=True, help="With --range: case name or glob pattern; repeatable.")
@AS_JSON
@ALLOW_MODIFIED
def inspect(path: Path, dtype: str | None, cases: tuple[str, ...], as_json: bool, allow_modified: bool) -> None:
    """Show what is in BUNDLE, or what architecture features a CHECKPOINT exercises."""
    if dtype is not None:
        from kvparity.runners.inspect.console import print_ranges

        opened = kvparity.open_bundle(path, allow_modified=allow_modified)
        print_ranges(kvparity.ranges(opened, dtype, cases), str(path), as_json=as_json)
        return
    data = kvparity.inspect(path, allow_modified=allow_modified)
    if as_json:
        click.echo(json.dumps(data, indent=1))
    elif "checkpoint" in data:
        from kvparity.exporter.checkpoint.inspect_checkpoint import inspect_checkpoint
        from kvparity.exporter.console import print_checkpoint

        _, spec, quantised = inspect_checkpoint(path)
        print_checkpoint(spec, str(path), quantised)
    else:
        from kvparity.runners.inspect.console import print_inspection

        print_inspection(kvparity.open_bundle(path, allow_modified=allow_modified), str(path))


@command("probes bundle --name 'layers.2.*'", "probes bundle -c handoff-129 --step 1 -o values.npz")
@BUNDLE
@click.option("-c", "--case", "cases", multiple=True, help="Name or glob pattern; repeatable  [default: the first]")
@click.option("--step", type=click.IntRange(min=0), help="One call of each case, from 0  [default: all]")
@click.option("-n", "--name", "names", multiple=True, help="Glob pattern of values, as 'layers.2.*'; repeatable.")
@click.option("-o", "--output", type=FILE, help="Write the values as a trace (.npz).")
@AS_JSON
@ALLOW_MODIFIED
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
    opened = kvparity.open_bundle(bundle, allow_modified=allow_modified)
    found = tuple(kvparity.probes(opened, cases, step))
    if output is None:
        from kvparity.runners.inspect.console import print_probes

        print_probes(found, names, as_json=as_json)
        return
    from kvparity.runners.inspect.probes import save_probes

    count = save_probes(opened, found, output, names)
    click.echo(f"{count} values of {len(found)} call{'' if len(found) == 1 else 's'} in {output}")


@command("package bundle --to genai", "package bundle --to transformersjs -o web/model")
@BUNDLE
@click.option("--to", "tool", required=True, metavar="TOOL", help="Who shall load it; `list packages` names them.")
@click.option("-o", "--output", type=FILE, help="The folder  [default: BUNDLE-TOOL]")
@ALLOW_MODIFIED
def package(bundle: Path, tool: str, output: Path | None, allow_modified: bool) -> None:
    """Turn BUNDLE into a folder that another tool loads as it is, with nothing of ours."""
    folder = kvparity.package(kvparity.open_bundle(bundle, allow_modified=allow_modified), tool, output)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        click.echo(f"  {path.stat().st_size / 1e6:9.2f} MB  {path.relative_to(folder).as_posix()}")
    click.echo(f"package  {folder}")


@command("list runners", name="list")
@click.argument("what", type=click.Choice(["runners", "cases", "families", "metrics", "packages"]))
def list_(what: str) -> None:
    """List runners (installed or how to install), cases, model families, metrics or packages."""
    if what == "runners":
        for row in kvparity.list_runners():
            click.echo(f"{row.name:<16} {row.version if row.available else 'absent':<12} {row.note}; takes {row.takes}")
        return
    rows = getattr(kvparity, f"list_{what}")()
    width = max(len(name) for name, _ in rows)
    for name, note in rows:
        click.echo(f"{name:<{width}}  {note}")


@command("train -o mine --steps 200")
@click.option("-o", "--output", type=FILE, help="Folder  [default: artifacts/tinygemma4text3m]")
@options_of(
    TrainOptions,
    leave=tuple(name for name in TrainOptions.__dataclass_fields__ if name not in ("steps", "seed", "threads")),
    steps={"type": COUNT},
    threads={"type": COUNT},
)
def train(output: Path | None, **given: int) -> None:
    """Rebuild the tiny checkpoint from stories that it makes up itself (about half an hour on 2 cores)."""
    from kvparity.exporter.tinygemma.console import train_command

    train_command(output or api.SHIPPED, given)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and map every outcome to an exit code.

    Args:
        arguments: Words after the program name; ``sys.argv`` where None.

    Returns:
        0 success or match, 1 mismatch, 2 anything that kept us from telling.
    """
    try:
        result = cli.main(args=None if arguments is None else list(arguments), standalone_mode=False)
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show()
    except (click.Abort, KeyboardInterrupt):
        click.echo("error: interrupted", err=True)
    except kvparity.KvparityError as error:
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
