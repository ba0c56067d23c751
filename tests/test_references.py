"""References: logits rebuilt from hidden states, sampled cache rows, wrong heads, models that differ when cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle, file_entry, write_manifest
from kvparity.exporter.contract.errors import BundleError, TraceError
from kvparity.exporter.contract.head import Head, HeadRule, stored_tensors
from kvparity.exporter.contract.spec import DECODE, ExportOptions
from kvparity.exporter.contract.vectors import DerivedLogits
from kvparity.runners.compare.judge import JudgeOptions, judge
from kvparity.runners.reference.record import record_cases
from kvparity.runners.spec import RunnerSpec
from tests.synthetic import Decoder, make_bundle, reference

HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "tied, softcap": ("gemma2", {"final_logit_softcapping": 3.0, "query_pre_attn_scalar": 16}),
    "tied": ("gemma3_text", {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "full_attention"]}),
    "untied": ("llama", {"tie_word_embeddings": False}),
    "bias": ("phi", {}),
    "scale": ("cohere", {"logit_scale": 0.0625}),
    "divisor": ("granite", {"logits_scaling": 7.0}),
}
VOCAB = 4000


def exported(folder: Path, model_type: str, settings: Mapping[str, Any], **options: Any) -> Bundle:
    """A bundle without vectors of a small model with a vocabulary that is large for it."""
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.export import export
    from tests.families import save_checkpoint, small_config

    config = small_config(model_type, {"vocab_size": VOCAB, "num_hidden_layers": 2, **settings})
    save_checkpoint(config, folder / "hf")
    target = folder / "bundle"
    return export(resolve(str(folder / "hf")), target, ExportOptions(**options), limit=40, in_process=True)


def recorded(bundle: Bundle, folder: Path, budget_mb: float, **options: Any) -> Bundle:
    """The bundle with vectors in another folder."""
    cases = [bundle.case(entry.name) for entry in bundle.manifest.cases]
    folder.mkdir()
    made = record_cases(bundle, cases, budget_mb=budget_mb, folder=folder, **options)
    manifest = replace(bundle.manifest, cases=made.cases, sequences=made.sequences, head=made.head, noise=made.noise)
    return Bundle(folder, manifest, weights_root=bundle.root)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A Gemma 3 of a vocabulary that is recorded as hidden states, written whole; tests must not change it."""
    pytest.importorskip("torch", reason="the exporter's extra is not installed")
    folder = tmp_path_factory.mktemp("large")
    bundle = exported(folder, *HEADS["tied"])
    cases = [bundle.case(entry.name) for entry in bundle.manifest.cases]
    made = record_cases(bundle, cases, budget_mb=2)
    manifest = replace(bundle.manifest, cases=made.cases, sequences=made.sequences, head=made.head, noise=made.noise)
    write_manifest(bundle.root, manifest)
    return Bundle.open(bundle.root)


@pytest.mark.parametrize(
    "name", [n if n in ("tied", "bias") else pytest.param(n, marks=pytest.mark.slow) for n in HEADS]
)
def test_rebuilt_logits_are_pytorchs_own_float64_logits(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the exporter's extra is not installed")
    bundle = exported(tmp_path, *HEADS[name])
    whole, rebuilt = (recorded(bundle, tmp_path / str(mb), mb) for mb in (4000, 1))
    assert whole.manifest.head is None
    assert {sequence.logits for sequence in rebuilt.manifest.sequences} == {"hidden"}
    for case in ("prefill-40", "batch-ragged", "special-tokens"):
        wanted: Any = whole.vectors(case).float64()["logits"]
        found: Any = rebuilt.vectors(case).arrays["logits"]
        assert isinstance(found, DerivedLogits)
        live = whole.vectors(case).case.mask == 1
        apart = np.abs(np.asarray(found)[live] - wanted[live]).max()
        assert apart <= 1e-12 * np.abs(wanted[live]).max()


def test_every_case_of_a_large_vocabulary_is_judged_past_the_window(large: Bundle) -> None:
    report = judge(large, JudgeOptions((RunnerSpec("ort"),), exact=True))
    assert report.verdict == "match"
    assert report.tol == "auto"
    assert report.covers.complete
    assert (report.covers.cases, report.covers.windows) == (len(large.manifest.cases), (8,))
    assert report.covers.derived_logits
    said = " ".join(report.questions[0].notes)
    assert "rebuilt in float64 from the hidden states" in said


def test_the_noise_of_rebuilt_logits_is_pytorchs_own(large: Bundle, tmp_path: Path) -> None:
    whole = recorded(large, tmp_path / "whole", 4000)
    assert large.manifest.noise["logits"] == pytest.approx(whole.manifest.noise["logits"], rel=1e-3)


def damaged(bundle: Bundle, folder: Path, change: Callable[[Any], None]) -> Bundle:
    """A copy whose head's weights are changed, with the hash in its manifest made right."""
    import shutil

    root = Path(shutil.copytree(bundle.root, folder / "damaged"))
    assert bundle.manifest.head is not None
    stored = stored_tensors([root / entry.path for entry in bundle.manifest.weights])[bundle.manifest.head.rule.weight]
    weights = np.memmap(stored.path, np.float32, "r+", stored.offset, stored.shape)
    change(weights)
    weights.flush()
    entries = tuple(file_entry(root, root / entry.path) for entry in bundle.manifest.weights)
    write_manifest(root, replace(bundle.manifest, weights=entries))
    return Bundle.open(root)


def test_a_zeroed_row_of_the_head_is_found_though_the_reference_is_rebuilt_from_it(
    large: Bundle, tmp_path: Path
) -> None:
    def zero(weights: Any) -> None:
        weights[1234] = 0

    report = judge(damaged(large, tmp_path, zero), JudgeOptions((RunnerSpec("ort"),), cases=("prefill-40",)))
    assert report.verdict == "mismatch"
    assert report.first_divergence is not None
    assert report.first_divergence.position == 0
    assert "logits of token 1234" in report.first_divergence.sentence
    assert any("1 row of the head" in note and "token 1234" in note for note in report.questions[0].notes)


def test_a_zeroed_row_is_found_with_a_live_reference_too(large: Bundle, tmp_path: Path) -> None:
    def zero(weights: Any) -> None:
        weights[1234] = 0

    bundle = damaged(large, tmp_path, zero)
    options = JudgeOptions((RunnerSpec("ort"),), cases=("prefill-9",), checkpoint=large.root.parent / "hf")
    report = judge(bundle, options)
    assert report.verdict == "mismatch"
    assert report.first_divergence is not None
    assert "logits of token 1234" in report.first_divergence.sentence


def test_a_row_that_is_off_by_too_little_for_any_tolerance_is_seen_all_the_same(large: Bundle, tmp_path: Path) -> None:
    def nudge(weights: Any) -> None:
        weights[17, 3] *= 1 + 2.0**-23

    bundle = damaged(large, tmp_path, nudge)
    head = bundle.head()
    assert head is not None
    assert head.wrong.tolist() == [17]
    assert judge(bundle, JudgeOptions((RunnerSpec("ort"),), cases=("prefill-9",))).verdict == "mismatch"


def test_a_head_that_is_not_the_checkpoints_fails_the_export(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="the exporter's extra is not installed")
    from kvparity.exporter.contract.checkpoint_files import CheckpointFiles

    bundle = exported(tmp_path, *HEADS["untied"])
    stored = stored_tensors([bundle.root / entry.path for entry in bundle.manifest.weights])["lm_head.weight"]
    weights = np.memmap(stored.path, np.float32, "r+", stored.offset, stored.shape)
    weights[5] += 1
    weights.flush()
    cases = [bundle.case("prefill-40")]
    with pytest.raises(TraceError, match=r"in lm_head\.weight 1 of 4,000 rows differ, first 5"):
        record_cases(bundle, cases, CheckpointFiles(tmp_path / "hf", None), budget_mb=1)


def test_a_sample_of_cache_rows_is_judged_as_one_and_said_to_be(large: Bundle, tmp_path: Path) -> None:
    bundle = recorded(large, tmp_path / "sampled", 0.75)
    strides = {sequence.stride for sequence in bundle.manifest.sequences}
    assert max(strides) > 1
    report = judge(bundle_with_graphs(large, bundle), JudgeOptions((RunnerSpec("ort"),)))
    assert report.verdict == "match"
    assert 0 < report.covers.rows < report.covers.of_rows
    assert any(note.startswith("Cache rows: ") for note in report.questions[0].notes)
    longest = max(bundle.manifest.sequences, key=lambda sequence: sequence.total)
    vectors = bundle.vectors("prefill-40")
    assert vectors.known is not None
    slots = np.flatnonzero(vectors.known[0])
    assert {0, 7, 8, 9, 16, longest.total - 1} <= set(slots.tolist()), "around 0, W, 2W and the end"


def bundle_with_graphs(graphs: Bundle, vectors: Bundle) -> Bundle:
    """One bundle of the graphs and weights of one and the vectors of another."""
    import shutil

    for name in ("vectors", "cases"):
        shutil.copytree(vectors.root / name, graphs.root.parent / "joined" / name, dirs_exist_ok=True)
    root = graphs.root.parent / "joined"
    for entry in (*(graph.file for graph in graphs.manifest.graphs.values()), *graphs.manifest.weights):
        shutil.copyfile(graphs.root / entry.path, root / entry.path)
    return Bundle(root, vectors.manifest)


def test_a_model_that_differs_when_cut_is_recorded_in_the_calls_of_each_case(tmp_path: Path) -> None:
    """Some state-space models compute something else token by token; then the reference is what they compute so."""

    def shifted(graph: str, outputs: dict[str, Any]) -> dict[str, Any]:
        return {**outputs, "logits": outputs["logits"] + (0.25 if graph == DECODE else 0)}

    def opener(dtype: str) -> Decoder:
        return Decoder(dtype, options=ExportOptions(sliding_cache="full"), edit=shifted)

    plain = make_bundle(tmp_path / "plain")
    chosen = [entry for entry in plain.manifest.cases if entry.first != DECODE and entry.batch == 1]
    cases = [plain.case(entry.name) for entry in chosen]
    made = record_cases(plain, cases, opener=opener)
    bundle = Bundle(plain.root, replace(plain.manifest, cases=made.cases, sequences=made.sequences, noise=made.noise))
    assert {sequence.chunks for sequence in bundle.manifest.sequences if sequence.name == "handoff-6"} == {(6, 1, 1, 1)}
    options = JudgeOptions((RunnerSpec("ort"),))
    assert judge(bundle, options, opener=lambda *_: Decoder(edit=shifted)).verdict == "match"
    assert judge(bundle, options, opener=lambda *_: Decoder()).verdict == "mismatch"
    assert len({sequence.name for sequence in plain.manifest.sequences}) < len(made.sequences)


def test_reading_tokens_that_are_not_the_sequences_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    longest = max(bundle.manifest.sequences, key=lambda sequence: sequence.total)
    taken = bundle.case(longest.name)  # long enough to be past where the sequences part
    other = next(sequence.name for sequence in bundle.manifest.sequences if sequence.name != longest.name)
    swapped = tuple(
        replace(entry, rows=tuple(replace(row, sequence=other) for row in entry.rows))
        if entry.name == taken.name
        else entry
        for entry in bundle.manifest.cases
    )
    with pytest.raises(TraceError, match="does not begin the sequence"):
        Bundle(bundle.root, replace(bundle.manifest, cases=swapped)).vectors(taken.name)


def test_what_pytorch_cannot_run_is_one_line(tmp_path: Path) -> None:
    def opener(dtype: str) -> Decoder:
        return Decoder(dtype, options=ExportOptions(sliding_cache="full"), crash_on_call=2)

    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match=r"PyTorch fails in a call of this model .*--vectors none") as caught:
        record_cases(bundle, [bundle.case("prefill-7")], opener=opener)
    assert "\n" not in str(caught.value)


def test_a_bundle_of_the_first_version_is_refused_in_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    path = bundle.root / "manifest.json"
    data = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**data, "schema_version": 1}), "utf-8")
    with pytest.raises(BundleError, match=r"schema_version 1, expected 2.*export the model again") as caught:
        Bundle.open(bundle.root)
    assert "\n" not in str(caught.value)


def test_a_verdict_that_crosses_no_window_says_so_and_is_no_complete_one(tmp_path: Path) -> None:
    from kvparity.runners.report.words import verdict_sentence

    bundle = make_bundle(tmp_path / "bundle")

    def ask(**options: Any) -> Any:
        return judge(bundle, JudgeOptions((RunnerSpec("ort"),), **options), opener=lambda *_: Decoder())

    whole = ask()
    total = len(bundle.manifest.cases)
    assert verdict_sentence(whole).startswith(f"MATCH  ort: {total} of {total} cases, past the window of 6, at most ")
    short = ask(cases=("prefill-[125]",))
    assert short.verdict == "match"
    assert verdict_sentence(short).startswith(
        f"MATCH up to position 5  ort: 3 of {total} cases, none past the window of 6"
    )
    assert short.covers.windows_not_crossed == (6,)
    refused = ask(cases=("prefill-[125]",), require_complete=True)
    assert refused.verdict == "error"
    assert verdict_sentence(refused).startswith("COULD NOT TELL  all that --require-complete asks for: 3 of ")
    assert ask(require_complete=True).verdict == "match"


def test_a_fixed_tolerance_below_pytorchs_own_error_is_named_in_the_first_line(tmp_path: Path) -> None:
    from kvparity.runners.report.words import verdict_sentence

    bundle = make_bundle(tmp_path / "bundle")
    for candidate in (Decoder(), Decoder(scale=1 + 1e-5)):
        options = JudgeOptions((RunnerSpec("ort"),), tol=1e-9)
        report = judge(bundle, options, opener=lambda *_, candidate=candidate: candidate)
        assert "the tolerance 1e-09 lies below PyTorch's own float32 error" in verdict_sentence(report)


def test_without_float64_references_the_default_tolerance_is_a_number(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", float64=False)
    report = judge(bundle, JudgeOptions((RunnerSpec("ort"),)), opener=lambda *_: Decoder())
    assert (report.verdict, report.tol) == ("match", 1e-4)


def test_packed_heads_are_read_as_what_they_stand_for(tmp_path: Path) -> None:
    from kvparity.exporter.contract.blocks import BLOCKS, SCALES, Blocks, dequantize

    random = np.random.default_rng(3)
    codes = random.integers(0, 256, (50, 32), dtype=np.uint8)
    scales = random.normal(size=(50, 2)).astype(np.float32)
    write_safetensors(tmp_path / "w.safetensors", {f"head{BLOCKS}": codes, f"head{SCALES}": scales})
    head = Head(HeadRule("head", scale=0.5, softcap=2.0), stored_tensors([tmp_path / "w.safetensors"]), 64)
    hidden = random.normal(size=(3, 64))
    wanted = 2.0 * np.tanh(0.5 * hidden @ dequantize(Blocks(codes, scales, None), 64).T / 2.0)
    assert np.abs(head.logits(hidden) - wanted).max() < 1e-14


def write_safetensors(path: Path, tensors: Mapping[str, Any]) -> None:
    from safetensors.numpy import save_file

    save_file(dict(tensors), path)


def test_the_reference_of_the_synthetic_bundle_is_the_decoder_itself(tmp_path: Path) -> None:
    """Twin of the cuts: a case in the middle of its sequence is what the decoder gives for it alone."""
    from kvparity.runners.reference.record import reference_arrays

    bundle = make_bundle(tmp_path / "bundle")
    vectors = bundle.vectors("batch-ragged")
    alone = reference_arrays(reference("float64"), bundle.model, vectors.case)
    live = vectors.case.mask == 1
    wide = vectors.float64()
    assert np.abs(wide["logits"][live] - alone["logits"][live]).max() < 1e-12
    rows = np.moveaxis(wide["cache.1.key"], 2, 1)[live] - np.moveaxis(alone["cache.1.key"], 2, 1)[live]
    assert np.abs(rows).max() < 1e-12
