"""Packages in the tools that they are for: the same text as ``run``, by the code of the package's own README."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.errors import EngineUnavailableError
from kvparity.exporter.contract.package import write_package
from kvparity.exporter.contract.spec import ExportOptions
from kvparity.runners.base import RunnerSpec, load_engine
from kvparity.runners.decode.generate import Generation, Sampling, generate
from kvparity.runners.engines import _node
from kvparity.runners.isolation.process import describe_isolated, interpreter
from tests.packaging_bundles import TINY, checkpoint, export_to, zero_row

pytest.importorskip("torch", reason="the exporter's extra is not installed")
pytestmark = pytest.mark.engine
PROMPT, COUNT = "Once upon", 80
NAMES = ("tiny", "llama", "gemma3", "lfm2", "qwen3_5", "granite4")
TAIL = {
    "genai": '\nimport json; print("\\n" + json.dumps([int(i) for i in generator.get_sequence(0)]))\n',
    "transformersjs": """
const inputs = generate.tokenizer("Once upon");
const ids = await generate.model.generate({ ...inputs, max_new_tokens: 80, do_sample: false });
console.log("\\n" + JSON.stringify(Array.from(ids.data, Number)));
""",
}


@dataclass(frozen=True)
class Subject:
    """A bundle and what ``run`` makes of the prompt."""

    bundle: Bundle
    said: Generation
    text: str


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Subject]:
    """The shipped checkpoint, and some of random weights: every cache at full length, or states beside it."""

    class Subjects(dict[str, Subject]):
        """Made when they are asked for."""

        def __missing__(self, name: str) -> Subject:
            folder = tmp_path_factory.mktemp(name)
            source = TINY if name == "tiny" else checkpoint(name, folder / "hf")
            self[name] = said_by(export_to(source, folder / "bundle"))
            return self[name]

    return Subjects()


def said_by(bundle: Bundle) -> Subject:
    pieces: list[str] = []
    said = generate(bundle, PROMPT, COUNT, runner=RunnerSpec("ort"), sampling=Sampling(), on_text=pieces.append)
    return Subject(bundle, said, PROMPT + "".join(pieces))


def play(tool: str, package: Path) -> tuple[str, tuple[int, ...]]:
    """Run the code of a package's README beside the package, and then print the tokens: text and tokens."""
    block = re.search(r"```(?:python|js)\n(.*?)```", (package / "README.md").read_text("utf-8"), flags=re.S)
    assert block is not None
    code = block[1] + TAIL[tool]
    if tool == "genai":
        command = [interpreter("genai", {}), "-c", code]
    else:
        (package.parent / "play.mjs").write_text(code, encoding="utf-8")
        modules = package.parent / "node_modules"
        if not modules.exists():
            modules.symlink_to(_node.home() / "node_modules")
        command = [str(shutil.which("node")), "play.mjs"]
    done = subprocess.run(command, cwd=package.parent, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    text, _, tokens = done.stdout.decode(errors="replace").rstrip("\n").rpartition("\n\n")
    return text, tuple(json.loads(tokens))


@pytest.fixture(params=["genai", "transformersjs"])
def tool(request: pytest.FixtureRequest) -> str:
    """A tool that is installed."""
    try:
        if request.param == "genai":
            describe_isolated(RunnerSpec("genai"))
        else:
            load_engine(request.param).describe()
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    return str(request.param)


def judge(tool: str, subject: Subject, folder: Path, *, text: bool = False) -> None:
    """The same tokens as ``run``, and others once the first new token's row of the head is zeroed."""
    write_package(subject.bundle, tool, folder)
    prompt, new = subject.said.prompt, subject.said.tokens
    said, tokens = play(tool, folder)
    assert tokens == prompt + new
    assert said == subject.text or not text
    pattern = "model.safetensors" if tool == "genai" else "onnx/*.onnx_data"
    zero_row(next(folder.glob(pattern)), new[0])
    _, tokens = play(tool, folder)
    assert tokens[: len(prompt)] == prompt
    assert tokens[len(prompt)] != new[0]


@pytest.mark.parametrize("name", NAMES)
def test_a_package_says_what_run_says(tool: str, name: str, subjects: dict[str, Subject], tmp_path: Path) -> None:
    text = name == "tiny"  # the others' bytes are no UTF-8, where GenAI ends a text
    judge(tool, subjects[name], tmp_path / "package", text=text)


@pytest.mark.parametrize(
    "options",
    [
        ExportOptions(profile="ort", sliding_cache="full"),
        ExportOptions(dtype="float16", sliding_cache="full"),
        ExportOptions(profile="ort", quantize="int4", block_size=16, sliding_cache="full"),
        ExportOptions(quantize="int8-dynamic", profile="ort", sliding_cache="full"),
    ],
    ids=["ort", "float16", "int4", "int8-dynamic"],
)
def test_other_profiles_and_numbers_say_what_run_says(tool: str, options: ExportOptions, tmp_path: Path) -> None:
    subject = said_by(export_to(checkpoint("gemma3", tmp_path / "hf"), tmp_path / "bundle", options))
    judge(tool, subject, tmp_path / "package")


def test_a_package_of_bounded_caches_says_what_run_says_past_the_window(tmp_path: Path) -> None:
    try:
        load_engine("transformersjs").describe()
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    subject = said_by(export_to(checkpoint("gemma3", tmp_path / "hf"), tmp_path / "bundle", ExportOptions()))
    judge("transformersjs", subject, tmp_path / "package")


BATCH = """
import json, onnxruntime_genai as og
model = og.Model("package")
tokenizer = og.Tokenizer(model)
tokenizer.update_options(add_special_tokens="true")
def new(prompts):
    ids = tokenizer.encode_batch(prompts).as_numpy()
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=ids.shape[1] + 12, batch_size=len(prompts))
    generator = og.Generator(model, parameters)
    generator.append_tokens(ids)
    while not generator.is_done():
        generator.generate_next_token()
    return [[int(i) for i in generator.get_sequence(row)[ids.shape[1]:]] for row in range(len(prompts))]
for long in ("Once upon a", "Once upon a time, there was a curious girl named Polly."):
    both = ["The", long]
    print(json.dumps([row == new([prompt])[0] for row, prompt in zip(new(both), both)]))
"""


@pytest.mark.parametrize(("name", "past"), [("llama", [True, True]), ("gemma3", [False, True])])
def test_genai_continues_a_ragged_batch_rightly_but_past_the_window_as_the_readme_says(
    name: str, past: list[bool], subjects: dict[str, Subject], tmp_path: Path
) -> None:
    try:
        describe_isolated(RunnerSpec("genai"))
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    write_package(subjects[name].bundle, "genai", tmp_path / "package")
    command = [interpreter("genai", {}), "-c", BATCH]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, text=True)
    assert [json.loads(line) for line in done.stdout.splitlines()][-1] == past
    told = "different lengths past 8 tokens" in (tmp_path / "package" / "README.md").read_text("utf-8")
    assert told is not past[0]
