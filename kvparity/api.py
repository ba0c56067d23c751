"""The Python API: what the command line calls, and nothing that it does besides.

Every function takes paths as ``str`` or ``Path``, and bundles opened or as a path. What goes wrong is a
:class:`KvparityError` whose message is one line: what, where, found against expected, what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.spec import RunnerSpec

if TYPE_CHECKING:
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.exporter.export import Stage
    from kvparity.runners.bench.bench import Measure
    from kvparity.runners.compare.candidates import Candidates
    from kvparity.runners.compare.changes import Changes
    from kvparity.runners.decode.generate import Generation
    from kvparity.runners.inspect.probes import Inside
    from kvparity.runners.inspect.ranges import RangeReport
    from kvparity.runners.report.report import Report

__all__ = [
    "bench",
    "compare",
    "diff_reports",
    "export",
    "inspect",
    "judge",
    "merge_reports",
    "open_bundle",
    "package",
    "probes",
    "ranges",
    "run",
]

SHIPPED = Path(__file__).parent / "tinygemma4text3m"
PathLike = str | Path
Say = Callable[[str], None]


def _quiet(*_: object) -> None:
    """Takes progress that nobody asked for."""


def export(
    model: PathLike | None = None,
    output: PathLike | None = None,
    options: ExportOptions | None = None,
    *,
    subfolder: str | None = None,
    revision: str | None = None,
    adapter: Path | str | None = None,
    vectors: Literal["all", "float32", "none"] = "all",
    vectors_mb: int | None = None,
    vectors_mode: Literal["auto", "whole", "streamed"] = "auto",
    text: Path | str | None = None,
    limit: int | None = None,
    on_stage: Callable[[Stage], None] = _quiet,
    on_sequence: Callable[[str, int, int], None] = _quiet,
    **changes: Any,
) -> Bundle:
    """Export a decoder-only language model to a bundle: a prefill and a decode graph, weights, reference vectors.

    Args:
        model: Checkpoint folder, GGUF file or hub id; the shipped tiny checkpoint where not given.
        output: Folder of the bundle; an earlier bundle there is replaced once the new one is whole.
            ``artifacts/NAME`` in the current folder where not given.
        options: How to export.
        subfolder: Folder inside the checkpoint that holds the model.
        revision: Hub revision.
        adapter: Folder of a LoRA adapter in peft's format, merged into the weights; needs the extra ``adapters``.
        vectors: Reference vectors to record: float32 and float64, float32 only, or none.
        vectors_mb: Most megabytes of reference vectors; the larger of 256 and 5 % of the weights where not given.
        vectors_mode: PyTorch's model in memory, or one module's weights at a time: the same bits.
        text: Measure quantisation on this file; on stories where not given.
        limit: Longest case in tokens.
        on_stage: Called after each stage.
        on_sequence: Called before a sequence is recorded: its name, its index and their number.
        **changes: Fields of :class:`ExportOptions` that differ from ``options``.

    Returns:
        The bundle.

    Raises:
        ExportError: The checkpoint cannot be read, or a stage failed; nothing was written then.
        OptionError: An option has another name or value than those known.

    Example:
        >>> bundle = kvparity.export("checkpoint", "bundle", profile="ort")  # doctest: +SKIP
    """
    from kvparity.exporter.contract.options import checked
    from kvparity.exporter.trace.process import Tracer

    settings = checked(ExportOptions, {**(vars(options) if options else {}), **changes})
    with Tracer() as tracer:  # it loads torch while this process does
        from kvparity.exporter.checkpoint.source import resolve
        from kvparity.exporter.export import export as run_export
        from kvparity.runners.reference.record import recorder

        part = None if adapter is None else Path(adapter)
        named = str(SHIPPED / "hf" if model is None else model)
        checkpoint = resolve(named, subfolder=subfolder, revision=revision, adapter=part)
        beside = _default_output(checkpoint.source if part is None else part.resolve().name, settings)
        record = recorder(float64=vectors == "all", budget_mb=vectors_mb, mode=vectors_mode, on_sequence=on_sequence)
        return run_export(
            checkpoint,
            Path(output or beside),
            settings,
            record=None if vectors == "none" else record,
            report=on_stage,
            limit=limit,
            text=None if text is None else Path(text),
            tracer=tracer,
        )


def _default_output(source: str, options: ExportOptions) -> Path:
    """Profile, and the layout, provider, dtype and quantisation where they are not the default."""
    ways = [getattr(options, key) for key in ("layout", "provider", "dtype", "quantize")]
    plain = ("dynamic", "cpu", "float32", "none")
    others = [way for way, usual in zip(ways, plain, strict=True) if way != usual]
    return Path("artifacts", f"{Path(source).stem}-{'-'.join([options.profile, *others])}")


def open_bundle(bundle: PathLike | Bundle, *, allow_modified: bool = False) -> Bundle:
    """Open a bundle's folder, and check that every file is the one that its manifest names.

    Args:
        bundle: The folder; an opened bundle is given back.
        allow_modified: Accept files whose sha256 differs; missing files are refused all the same.

    Raises:
        BundleError: Not a bundle, another schema version, a file missing, modified or outside the folder.
    """
    from kvparity.exporter.contract.bundle import Bundle

    return bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle), allow_modified=allow_modified)


def compare(
    bundle: PathLike | Bundle,
    runners: Candidates = (),
    *,
    traces: Sequence[PathLike] = (),
    names: str | None = None,
    against: PathLike | None = None,
    say: Say = _quiet,
    **options: Any,
) -> Report:
    """Compare what runners compute from a bundle with what PyTorch computes, at every position and cache row.

    Args:
        bundle: The bundle.
        runners: ``NAME`` or ``NAME:key=value,…`` of an engine, ``all`` for every installed one, a class or function
            that takes a bundle and gives a :class:`Session`, or several of these; ``ort`` where not given.
        traces: Saved traces, each judged as a runner is: ``.npz``, safetensors, or a folder of ``.npy`` or raw files.
        against: What to compare with instead of PyTorch: a recording, or the folder of another bundle of the model,
            which the same runners play.
        names: Whose names the traces' keys are: ``llama.cpp``, ``mlx`` or ``hooks``; the contract's where not given.
        say: Takes a line of progress at a time.
        **options: Fields of ``JudgeOptions``: ``tol``, ``cases``, ``outputs``, ``exact``, ``locate``, ``live``, …

    Returns:
        The report; its ``verdict`` is ``match``, ``mismatch`` or ``error`` (could not tell).

    Raises:
        KvparityError: The request makes no sense: no such bundle, runner, case or option.

    Example:
        >>> report = kvparity.compare("bundle", ["ort", "openvino"], tol=1e-4, exact=True)  # doctest: +SKIP
    """
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.exporter.contract.options import checked
    from kvparity.runners.compare.candidates import candidates, opener_of
    from kvparity.runners.compare.judge import judge
    from kvparity.runners.compare.options import JudgeOptions

    specs, makers = candidates(runners, traces, say, names)
    if against is not None:
        bundled = (Path(against) / "manifest.json").is_file()
        options["against"] = Path(against) if bundled else RunnerSpec("trace_file", {"file": str(against)})
    if isinstance(bundle, str | Path):
        options = {"shown_bundle": str(bundle), **options}
    for name in ("cases", "outputs"):
        if isinstance(options.get(name), str):
            options[name] = (options[name],)
    settings = checked(JudgeOptions, {"runners": specs, "timed": len(specs) > 1, **options})
    if isinstance(bundle, Bundle):
        return judge(bundle, settings, say, opener_of(makers))
    opened = Bundle.open(Path(bundle), allow_modified=settings.allow_modified, wait=False)
    try:
        return judge(opened, settings, say, opener_of(makers))
    finally:  # files were hashed meanwhile: one that differs is what there is to say, whatever it led to
        opened.verified()


def judge(
    package: PathLike,
    against: PathLike | None = None,
    output: PathLike | None = None,
    runners: Candidates = (),
    *,
    variant: str = "",
    subfolder: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    limit_seconds: float = 120.0,
    limit_mb: int | None = None,
    say: Say = _quiet,
    **options: Any,
) -> Report:
    """Judge a package that somebody else exported against the checkpoint that it is of.

    Args:
        package: An ``.onnx`` file, or a folder of Optimum, transformers.js, ONNX Runtime GenAI, mobius or transformers.
        against: Checkpoint folder, GGUF file or hub id; the shipped tiny checkpoint where not given.
        output: Folder that keeps the package as a bundle, with its references, for every other command.
        runners: As :func:`compare` takes them.
        variant: Which of several graphs of the package, such as ``q4f16``.
        subfolder: Folder inside the checkpoint that holds the model.
        revision: Hub revision.
        limit: Longest case in tokens.
        limit_seconds: Most seconds that one call of a graph, or loading it, may take.
        limit_mb: Most megabytes that a graph's process may take; the machine's memory where not given, 0 for any.
        say: Takes a line of progress at a time.
        **options: Fields of ``JudgeOptions``; without ``exact`` and ``locate``, what differs is located all the same.

    Returns:
        The report; its ``package`` says what the package offers, and what it stores of every weight.

    Raises:
        KvparityError: The package cannot be read or does not run, or the checkpoint cannot be read.

    Example:
        >>> report = kvparity.judge("model-onnx/", "model/", output="judged")  # doctest: +SKIP
    """
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.judging import Limits, judge_package

    def compared(bundle: Bundle, asked: Mapping[str, Any]) -> Report:
        return compare(bundle, say=say, **{"runners": runners, "shown_bundle": str(output or "BUNDLE"), **asked})

    checkpoint = resolve(str(SHIPPED / "hf" if against is None else against), subfolder=subfolder, revision=revision)
    limits = Limits(limit, limit_seconds, limit_mb)
    target = None if output is None else Path(output)
    return judge_package(Path(package), checkpoint, target, variant, limits, compared, options, say)


def merge_reports(reports: Sequence[PathLike | Report]) -> Report:
    """Put reports of one bundle together: of other machines, other engines, or other cases.

    A runner that several reports have is one where engine, version, settings and results agree; else it is several,
    named ``ort@1.32.0``, or by report where versions are equal too.

    Args:
        reports: JSON files that :meth:`Report.save` or ``compare --json`` wrote, or reports.

    Returns:
        One report of every runner and every case; its verdict is the worst of them.

    Raises:
        KvparityError: A file is no report, or they are of different bundles or judged by different tolerances.

    Example:
        >>> kvparity.merge_reports(["phone.json", "laptop.json"]).save("both.html")  # doctest: +SKIP
    """
    from kvparity.exporter.contract.errors import TraceError
    from kvparity.runners.compare.merge import merge

    paths = [Path(item) for item in reports if isinstance(item, str | Path)]
    short = len({path.stem for path in paths}) == len(paths)
    named: dict[str, Report] = {}
    for index, item in enumerate(reports):
        name = (Path(item).stem if short else str(item)) if isinstance(item, str | Path) else f"report {index}"
        if name in named:
            raise TraceError(f"{item}: is given twice")
        named[name] = _report(item)
    return merge(named)


def diff_reports(old: PathLike | Report, new: PathLike | Report) -> Changes:
    """What became better or worse between two reports, case by case: an engine's upgrade, or a new export.

    Args:
        old: The report before: a JSON file, or a report.
        new: The report now.

    Returns:
        The changes; ``verdict`` is ``mismatch`` where a case that matched does not now, ``error`` where nothing was
        judged in both.

    Raises:
        KvparityError: A file is no report.

    Example:
        >>> print(kvparity.diff_reports("ort-1.27.json", "ort-1.32.json").sentence)  # doctest: +SKIP
        NOT WORSE  nothing changed; 27 as before
    """
    from kvparity.runners.compare.changes import changes

    return changes(_report(old), _report(new))


def _report(report: PathLike | Report) -> Report:
    from kvparity.runners.report.report import Report

    return Report.load(report) if isinstance(report, str | Path) else report


def run(
    bundle: PathLike | Bundle,
    prompt: str = "Once upon",
    tokens: int = 80,
    runner: str | RunnerSpec = "ort",
    *,
    raw: bool = False,
    draft: int = 0,
    allow_modified: bool = False,
    on_text: Say = _quiet,
    **sampling: Any,
) -> Generation:
    """Continue a prompt with the graphs of a bundle alone, without PyTorch.

    Args:
        bundle: The bundle.
        prompt: Text; where the model has a chat template, a message that it answers.
        tokens: Most new tokens.
        runner: Runner, or ``NAME:key=value,…``
        raw: Continue the prompt as it is, also where the model has a chat template.
        draft: Guess up to so many tokens from the text so far and check them in one call; greedy, the same text.
        allow_modified: Run files that differ from the manifest.
        on_text: Gets the text piece by piece; the first piece begins with the prompt where that is continued.
        **sampling: ``temperature``, ``top_k``, ``top_p``, ``seed``; greedy where not given.

    Returns:
        The new text, its tokens, why it ended, and seconds.

    Raises:
        KvparityError: The engine is absent, the bundle has no tokenizer, the prompt is too long, or nothing can be
            drafted for such sampling or such graphs.
    """
    from kvparity.exporter.contract.options import checked
    from kvparity.runners.base import parse_runner
    from kvparity.runners.decode.chat import chat_template
    from kvparity.runners.decode.generate import Sampling, generate

    settings = checked(Sampling, sampling)
    spec = runner if isinstance(runner, RunnerSpec) else parse_runner(runner)
    opened = open_bundle(bundle, allow_modified=allow_modified)
    chat = not raw and chat_template(opened.root) is not None
    before = [] if chat else [prompt]

    def show(piece: str) -> None:
        on_text("".join([*before, piece]))
        before.clear()

    return generate(opened, prompt, tokens, runner=spec, sampling=settings, chat=chat, draft=draft, on_text=show)


def bench(
    bundles: PathLike | Bundle | Sequence[PathLike | Bundle],
    runners: str | Sequence[str] = (),
    *,
    allow_modified: bool = False,
    say: Say = _quiet,
    **options: Any,
) -> list[Measure]:
    """Time decoding and prefill of every bundle on every runner, side by side in one run.

    Args:
        bundles: One bundle or several.
        runners: One runner or several, or ``all``; ``ort`` where not given.
        allow_modified: Time bundles whose files differ from the manifest.
        say: Takes a line of progress at a time, and why an engine could not be measured.
        **options: Fields of ``BenchOptions``: ``contexts``, ``prefill``, ``rounds``, ``steps``.

    Raises:
        KvparityError: Nothing could be measured.
    """
    from kvparity.exporter.contract.bundle import Bundle
    from kvparity.exporter.contract.options import checked
    from kvparity.runners.bench.bench import bench as run_bench
    from kvparity.runners.bench.options import BenchOptions
    from kvparity.runners.compare.candidates import candidates

    several = [bundles] if isinstance(bundles, str | Path | Bundle) else bundles
    specs, _ = candidates(runners, say=say)
    settings = checked(BenchOptions, options)
    return run_bench([open_bundle(b, allow_modified=allow_modified) for b in several], specs, settings, say)


def inspect(path: PathLike | Bundle, *, allow_modified: bool = False) -> dict[str, Any]:
    """What is in a bundle, or what a checkpoint is before it is exported, as plain data.

    Args:
        path: A bundle, or a checkpoint: a folder or a GGUF file.
        allow_modified: Show a bundle whose files differ from the manifest.

    Raises:
        KvparityError: It is neither; says why.
    """
    from kvparity.exporter.checkpoint.inspect_checkpoint import inspect_checkpoint, is_checkpoint
    from kvparity.runners.inspect.bundle import inspection

    if isinstance(path, str | Path) and is_checkpoint(Path(path)):
        name, spec, quantised = inspect_checkpoint(Path(path))
        return {"checkpoint": name, "model": asdict(spec), **({"quantised": quantised} if quantised else {})}
    return inspection(open_bundle(path, allow_modified=allow_modified))


def ranges(bundle: PathLike | Bundle, dtype: str = "auto", cases: Sequence[str] = ()) -> RangeReport:
    """Play cases in float64 and measure how far the values inside the graphs reach in a dtype.

    Args:
        bundle: The bundle.
        dtype: ``float16``, ``bfloat16`` or ``float32``; ``auto`` is the bundle's own, or float16 for float32 bundles.
        cases: Names or glob patterns; the longest of at most 512 tokens and those of text where empty.

    Raises:
        BundleError: No case matches, or a half-type bundle is to be judged by another dtype.
    """
    from kvparity.runners.inspect.ranges import measure_ranges

    return measure_ranges(open_bundle(bundle), dtype, cases)


def probes(bundle: PathLike | Bundle, cases: Sequence[str] = (), step: int | None = None) -> Iterator[Inside]:
    """Values at the module borders of recorded cases, evaluated in float64, call by call.

    Args:
        bundle: A bundle of the dynamic layout.
        cases: Names or glob patterns; the first recorded case where empty.
        step: One call of each case, from 0; all where None.

    Raises:
        BundleError: No such case, no recorded vectors, or no such call.
    """
    from kvparity.runners.inspect.probes import inside

    return inside(open_bundle(bundle), tuple(cases), step)


def package(bundle: PathLike | Bundle, tool: str, output: PathLike | None = None) -> Path:
    """Turn a bundle into a folder that another tool loads as it is, with nothing of ours.

    Args:
        bundle: The bundle.
        tool: Who shall load it; ``list_packages()`` names them.
        output: The folder; ``BUNDLE-TOOL`` beside the bundle where not given.

    Returns:
        The folder.

    Raises:
        PackageError: No such tool, or it cannot take the bundle; says what to export instead.
    """
    from kvparity.exporter.contract.package import write_package

    opened = open_bundle(bundle)
    root = opened.root if opened.root.name else opened.root.absolute()
    target = Path(output) if output else root.with_name(f"{root.name}-{tool}")
    write_package(opened, tool, target)
    return target
