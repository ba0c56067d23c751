"""Folders that other tools load, without the tools: what is in them, what is refused, and whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cli
from kvparity.exporter.contract.bundle import Bundle, FileEntry
from kvparity.exporter.contract.errors import BundleError, PackageError
from kvparity.exporter.contract.files import copy_file, link_file
from kvparity.exporter.contract.package import load_layout, package_names, write_package
from kvparity.exporter.contract.packages import genai, transformersjs
from kvparity.exporter.contract.spec import DECODE, ExportOptions, StateSpec
from tests.packaging_bundles import TEMPLATE, checkpoint, export_to
from tests.synthetic import make_bundle

pytest.importorskip("torch", reason="the exporter's extra is not installed")
TOOLS = ("genai", "transformersjs")


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Full attention, two key-value heads, a token that begins a text."""
    folder = tmp_path_factory.mktemp("llama")
    return export_to(checkpoint("llama", folder / "hf"), folder / "bundle", ExportOptions())


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Sliding and full layers, sliding caches at full length."""
    folder = tmp_path_factory.mktemp("gemma3")
    return export_to(checkpoint("gemma3", folder / "hf"), folder / "bundle")


@pytest.fixture(scope="module")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A chat template in a file, two end tokens, no token for padding or for the beginning of a text."""
    folder = tmp_path_factory.mktemp("chat")
    return export_to(checkpoint("chat", folder / "hf"), folder / "bundle")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def with_options(bundle: Bundle, **options: Any) -> Bundle:
    return Bundle(bundle.root, replace(bundle.manifest, options=replace(bundle.options, **options)))


def test_layouts_are_found_by_what_a_file_has_and_golden_vectors_are_none() -> None:
    assert package_names() == TOOLS
    for name in TOOLS:
        assert load_layout(name).TOOL
    with pytest.raises(PackageError, match="--to golden: unknown; known are genai, transformersjs"):
        load_layout("golden")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_genai_folder_has_the_files_and_ports_that_its_settings_name(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    bundle = request.getfixturevalue(name)
    files = {path.as_posix() for path in write_package(bundle, "genai", tmp_path / "p")}
    assert files == {
        *("README.md", "decode.onnx", "genai_config.json", "kvparity-genai.json"),
        *("model.safetensors", "tokenizer.json", "tokenizer_config.json"),
    }
    config = read(tmp_path / "p" / "genai_config.json")
    model, decoder = config["model"], config["model"]["decoder"]
    assert decoder["filename"] in files
    spec = bundle.graph(DECODE).spec
    slots = range(decoder["num_hidden_layers"])
    named = [text.replace("%d", str(slot)) for text in decoder["inputs"].values() for slot in slots]
    assert set(named) == {port.name for port in spec.inputs}
    named = [text.replace("%d", str(slot)) for text in decoder["outputs"].values() for slot in slots]
    assert set(named) == {port.name for port in spec.outputs}
    assert (decoder["num_key_value_heads"], decoder["head_size"], decoder["num_attention_heads"]) == (2, 16, 4)
    assert (model["context_length"], model["vocab_size"], model["type"]) == (256, 1024, "decoder")
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (0, [1], 2)
    assert config["search"] == {"max_length": 256, "past_present_share_buffer": False, "do_sample": False}
    for file in ("decode.onnx", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "p" / file).read_bytes() == (bundle.root / file).read_bytes()


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_a_transformersjs_folder_has_the_names_that_are_asked_for_and_unchanged_weights(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    import onnx
    import onnx_ir as ir

    from kvparity.exporter.check import external_files

    bundle = request.getfixturevalue(name)
    files = {path.as_posix() for path in write_package(bundle, "transformersjs", tmp_path / "p")}
    assert files == {
        *("README.md", "config.json", "generation_config.json", "kvparity-transformersjs.json"),
        *("onnx/model.onnx", "onnx/model.onnx_data", "tokenizer.json", "tokenizer_config.json"),
    }
    graph = tmp_path / "p" / "onnx" / "model.onnx"
    onnx.checker.check_model(str(graph))
    packed, own = ir.load(graph), ir.load(bundle.graph_path(DECODE))
    assert external_files(packed) == {"model.onnx_data": external_files(own)["model.safetensors"]}
    assert (graph.parent / "model.onnx_data").read_bytes() == (bundle.root / "model.safetensors").read_bytes()
    for mine, theirs in zip(own.graph.initializers.values(), packed.graph.initializers.values(), strict=True):
        assert mine.const_value is not None
        assert theirs.const_value is not None
        assert mine.const_value.tobytes() == theirs.const_value.tobytes()
    assert not onnx.load(graph, load_external_data=False).graph.value_info
    assert [node.op_type for node in packed.graph] == [node.op_type for node in own.graph]
    sizes = {str(size) for value in packed.graph.inputs for size in value.shape or ()}
    assert sizes & {"batch", "batch_size"} == {"batch_size"}  # transformers.js makes empty caches of as many rows
    config = read(tmp_path / "p" / "config.json")
    assert (config["model_type"], config["num_hidden_layers"]) == ("llama", 3)
    assert config["transformers.js_config"] == {"dtype": "fp32", "use_external_data_format": {"model.onnx": 1}}


def test_weights_in_several_files_get_the_numbers_that_are_asked_for(tmp_path: Path) -> None:
    import onnx_ir as ir

    from kvparity.exporter.check import external_files

    bundle = export_to(checkpoint("llama", tmp_path / "hf", shard_kb=200), tmp_path / "bundle")
    count = len(bundle.manifest.weights)
    assert count > 1
    write_package(bundle, "transformersjs", tmp_path / "p")
    folder = tmp_path / "p" / "onnx"
    wanted = {f"model.onnx_data{'' if i == 0 else f'_{i}'}" for i in range(count)}
    assert {path.name for path in folder.iterdir()} == {"model.onnx", *wanted}
    assert set(external_files(ir.load(folder / "model.onnx"))) == wanted
    config = read(tmp_path / "p" / "config.json")["transformers.js_config"]
    assert config["use_external_data_format"] == {"model.onnx": count}
    write_package(bundle, "genai", tmp_path / "g")
    assert {e.path for e in bundle.manifest.weights} <= {path.name for path in (tmp_path / "g").iterdir()}


@pytest.mark.parametrize(
    ("options", "file", "dtype"),
    [
        ({}, "model.onnx", "fp32"),
        ({"dtype": "float16"}, "model_fp16.onnx", "fp16"),
        ({"quantize": "int4"}, "model_q4.onnx", "q4"),
        ({"quantize": "int4", "dtype": "float16"}, "model_q4f16.onnx", "q4f16"),
        ({"quantize": "int8", "dtype": "float16"}, "model_int8.onnx", "int8"),
        ({"quantize": "int8-dynamic"}, "model_quantized.onnx", "q8"),
    ],
)
def test_the_graph_s_file_is_named_after_the_numbers_in_it(
    llama: Bundle, tmp_path: Path, options: dict[str, str], file: str, dtype: str
) -> None:
    write_package(with_options(llama, **options), "transformersjs", tmp_path / "p")
    assert {path.name for path in (tmp_path / "p" / "onnx").iterdir()} == {file, f"{file}_data"}
    asked = read(tmp_path / "p" / "config.json")["transformers.js_config"]
    assert asked == {"dtype": dtype, "use_external_data_format": {file: 1}}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize(
    ("options", "advice"),
    [
        (
            {"layout": "static", "max_len": 64, "chunk": 8},
            "layout dynamic only, .* static; export with --layout dynamic",
        ),
        ({"layout": "shared", "profile": "ort"}, "this bundle's is shared; export with --layout dynamic"),
        ({"profile": "bare"}, "this bundle's is bare; export with --profile portable"),
    ],
)
def test_what_a_tool_cannot_take_is_refused_with_what_to_export(
    tmp_path: Path, tool: str, options: dict[str, Any], advice: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle", cases=(), options=ExportOptions(**{"sliding_cache": "full", **options}))
    with pytest.raises(PackageError, match=advice) as caught:
        write_package(bundle, tool, tmp_path / "p")
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_each_tool_refuses_what_it_alone_cannot_take(tmp_path: Path, llama: Bundle) -> None:
    bounded = make_bundle(tmp_path / "bundle", cases=())
    with pytest.raises(PackageError, match="export with --sliding-cache full"):
        genai.refuse(bounded)
    transformersjs.refuse(bounded)
    genai.refuse(llama)  # bounded too, but no layer slides
    half = with_options(llama, dtype="bfloat16")
    with pytest.raises(PackageError, match=r"dtype float32 or float16 only, .* bfloat16; export with --dtype float32"):
        transformersjs.refuse(half)
    genai.refuse(half)
    shards = tuple(FileEntry(f"model-{i}.safetensors", 1, "") for i in range(101))
    many = Bundle(llama.root, replace(llama.manifest, weights=shards))
    with pytest.raises(PackageError, match="at most 100 files of weights, and this bundle has 101"):
        transformersjs.refuse(many)
    with pytest.raises(PackageError, match=r"has no tokenizer\.json"):
        write_package(bounded, "transformersjs", tmp_path / "p")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_package_is_whole_or_absent(
    tmp_path: Path, llama: Bundle, tool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_package(llama, tool, tmp_path / "p")
    before = {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()}

    def fails(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "kvparity.exporter.contract.packages._parts.inside", fails
    )  # the graph and the weights are there by then
    for target in (tmp_path / "p", tmp_path / "q"):
        with pytest.raises(PackageError, match=r"cannot be written \(No space left on device\); nothing was"):
            write_package(llama, tool, target)
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
    assert {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()} == before
    monkeypatch.undo()
    (tmp_path / "p" / "README.md").write_text("old", encoding="utf-8")
    write_package(llama, tool, tmp_path / "p")
    assert {path: path.read_bytes() for path in (tmp_path / "p").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("tool", TOOLS)
def test_a_folder_that_is_no_package_of_the_tool_is_not_overwritten(tmp_path: Path, llama: Bundle, tool: str) -> None:
    other = next(name for name in TOOLS if name != tool)
    write_package(llama, other, tmp_path / "p")
    shutil.copytree(llama.root, tmp_path / "bundle")
    (tmp_path / "made-elsewhere").mkdir()
    (tmp_path / "made-elsewhere" / "genai_config.json").write_text("{}", encoding="utf-8")
    for name in ("p", "bundle", "made-elsewhere"):
        with pytest.raises(BundleError, match=f"{name}: exists and is not a {tool} package; choose another folder"):
            write_package(llama, tool, tmp_path / name)
    write_package(llama, tool, tmp_path / "q")
    inner = Path(shutil.copytree(llama.root, tmp_path / "q" / "bundle"))
    with pytest.raises(PackageError, match="the bundle lies in it, and would be replaced"):
        write_package(Bundle.open(inner), tool, tmp_path / "q")
    assert inner.is_dir()


def test_the_tokenizer_s_settings_say_what_a_pipeline_does_not_find_out(
    tmp_path: Path, llama: Bundle, chat: Bundle
) -> None:
    for bundle in (llama, chat):
        before = (bundle.root / "tokenizer_config.json").read_bytes()
        for place in (copy_file, link_file):
            folder = tmp_path / f"{bundle.model.model_type}-{place.__name__}"
            folder.mkdir()
            transformersjs.write(bundle, folder, place)
        assert (bundle.root / "tokenizer_config.json").read_bytes() == before
    settings = read(tmp_path / "llama-copy_file" / "tokenizer_config.json")
    assert settings["add_bos_token"] is True
    assert "chat_template" not in settings
    settings = read(tmp_path / "qwen3-link_file" / "tokenizer_config.json")
    assert "add_bos_token" not in settings
    assert settings["chat_template"] == TEMPLATE


@pytest.mark.parametrize(
    ("tool", "file"), [("genai", "genai_config.json"), ("transformersjs", "generation_config.json")]
)
def test_every_end_token_counts_and_one_of_them_pads_where_nothing_else_does(
    tmp_path: Path, chat: Bundle, tool: str, file: str
) -> None:
    write_package(chat, tool, tmp_path / "p")
    settings = read(tmp_path / "p" / file)
    settings = settings.get("model", settings)
    assert (settings["eos_token_id"], settings["pad_token_id"]) == ([1, 5], 1)
    assert settings.get("bos_token_id") is None
    assert (tmp_path / "p" / "chat_template.jinja").read_text("utf-8") == TEMPLATE


def test_the_readme_says_how_to_load_it_and_what_does_not_work(tmp_path: Path, llama: Bundle, gemma3: Bundle) -> None:
    texts = {}
    for bundle in (llama, gemma3):
        for tool in TOOLS:
            name = f"{bundle.model.model_type}-{tool}"
            write_package(bundle, tool, tmp_path / name)
            texts[name] = (tmp_path / name / "README.md").read_text("utf-8")
            assert f'"{"./" if tool == "transformersjs" else ""}{name}"' in texts[name]
            assert f"({bundle.model.architecture}, " in texts[name]
            assert "$" not in texts[name]
    assert "past 8 tokens" in texts["gemma3_text-genai"]
    assert "past 8 tokens" not in texts["llama-genai"]
    bounded = with_options(gemma3, sliding_cache="bounded")
    assert "export with `--sliding-cache full`" in transformersjs.readme(bounded, "x")
    assert "export with `--sliding-cache full`" not in texts["gemma3_text-transformersjs"]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_model_that_keeps_states_alone_is_refused(tool: str, llama: Bundle) -> None:
    state = StateSpec("conv_state", (8, 2))
    slots = tuple(replace(slot, kv_heads=0, states=(state,)) for slot in llama.model.slots)
    bundle = Bundle(llama.root, replace(llama.manifest, model=replace(llama.model, slots=slots)))
    with pytest.raises(PackageError, match="llama keeps conv_state alone"):
        load_layout(tool).refuse(bundle)


def with_settings(bundle: Bundle, folder: Path, **settings: Any) -> Bundle:
    """A copy whose generation_config.json says this."""
    copy = Path(shutil.copytree(bundle.root, folder))
    path = copy / "generation_config.json"
    path.write_text(json.dumps({**read(path), **settings}), encoding="utf-8")
    return Bundle.open(copy, allow_modified=True)


SAMPLED = {"do_sample": True, "temperature": 0.7, "top_k": 64, "top_p": 0.95, "repetition_penalty": 1.1}


@pytest.mark.parametrize(
    ("settings", "search", "dropped"),
    [
        ({}, {"do_sample": False}, {"genai": "", "transformersjs": ""}),
        (SAMPLED, SAMPLED, {"genai": "", "transformersjs": "`top_p` 0.95"}),
        (
            {"do_sample": True},  # transformers' own top_k holds then
            {"do_sample": True, "temperature": 1.0, "top_k": 50, "top_p": 1.0},
            {"genai": "", "transformersjs": ""},
        ),
        ({**SAMPLED, "do_sample": False}, {"do_sample": False, "repetition_penalty": 1.1}, {}),
        (
            {"do_sample": True, "top_k": 0, "top_p": 0.9, "min_p": 0.05, "cache_implementation": "hybrid"},
            {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 0.9},
            {"genai": "`min_p` 0.05", "transformersjs": "`top_p` 0.9, `min_p` 0.05"},
        ),
        (
            {"max_new_tokens": 2048, "num_beams": 4, "suppress_tokens": [7]},
            {"do_sample": False},
            {"genai": "`max_new_tokens` 2048, `num_beams` 4, `suppress_tokens` [7]", "transformersjs": "`num_beams` 4"},
        ),
    ],
)
def test_the_model_s_own_sampling_settings_are_taken_over_or_named(
    tmp_path: Path, llama: Bundle, settings: dict[str, Any], search: dict[str, Any], dropped: dict[str, str]
) -> None:
    bundle = with_settings(llama, tmp_path / "bundle", **settings)
    for tool in TOOLS:
        write_package(bundle, tool, tmp_path / tool)
        text = (tmp_path / tool / "README.md").read_text("utf-8")
        names = dropped.get(tool, "")
        assert ("heed all" in text) == bool(names)
        assert names in text
    found = read(tmp_path / "genai" / "genai_config.json")["search"]
    assert found == {"max_length": 256, "past_present_share_buffer": False, **search}
    carried = read(tmp_path / "transformersjs" / "generation_config.json")
    assert {name: carried[name] for name in settings} == settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, set()),
        ({"logits": "last"}, {("genai", "`--logits last`")}),
        (
            {"profile": "ort", "provider": "webgpu"},
            {("genai", "GroupQueryAttention"), ("transformersjs", "GroupQueryAttention")},
        ),
        ({"profile": "ort", "provider": "cuda"}, set()),  # float32: no GroupQueryAttention
        ({"sliding_cache": "bounded"}, {("transformersjs", "--sliding-cache full` for that and for Optimum")}),
    ],
)
def test_a_readme_states_what_each_option_takes_away(
    gemma3: Bundle, options: dict[str, Any], said: set[tuple[str, str]]
) -> None:
    words = ("`--logits last`", "GroupQueryAttention", "--sliding-cache full` for that and for Optimum")
    bundle = with_options(gemma3, **options)
    found = {(tool, word) for tool in TOOLS for word in words if word in load_layout(tool).readme(bundle, "x")}
    assert found == said


@pytest.mark.parametrize("options", [{}, {"dtype": "float16"}, {"quantize": "int4"}])
def test_the_readme_names_the_file_that_optimum_has_to_be_told(
    tmp_path: Path, llama: Bundle, options: dict[str, Any]
) -> None:
    write_package(with_options(llama, **options), "transformersjs", tmp_path / "p")
    text = (tmp_path / "p" / "README.md").read_text("utf-8")
    (file,) = [path.name for path in (tmp_path / "p" / "onnx").iterdir() if path.suffix == ".onnx"]
    assert f'from_pretrained("p", subfolder="onnx", file_name="{file}")' in text


def test_the_command_prints_the_folder_or_one_line_and_exit_code_2(
    tmp_path: Path, llama: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["package", str(llama.root), "--to", "genai", "-o", str(tmp_path / "p")]
    assert cli.main(asked) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"package  {tmp_path / 'p'}"
    for words in ([*asked[:3], "nobody"], [*asked[:-1], str(llama.root)]):
        assert cli.main(words) == 2
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n"), said.err[:7]) == ("", 1, "error: ")
    assert cli.main(["list", "packages"]) == 0
    assert "transformersjs  @huggingface/transformers" in capsys.readouterr().out
