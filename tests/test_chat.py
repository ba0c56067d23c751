"""The prompt of a chat is that of transformers' ``apply_chat_template``, wherever a template comes from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from kvparity.exporter.contract.bundle import Bundle
from kvparity.exporter.contract.chat_templates import chat_templates
from kvparity.exporter.contract.errors import BundleError
from kvparity.runners.decode.chat import chat_prompt, chat_template
from tests.chat_constructs import CONSTRUCTS, REFUSED
from tests.packaging_bundles import TINY

TEXT = " say <b>'hi' & \"bye\" é\n"
TOKENS: dict[str, Any] = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "bos_token": "<bos>",
    "eos_token": {"__type": "AddedToken", "content": "<eos>", "lstrip": False, "normalized": False},
    "pad_token": "<pad>",
    "image_token": "<pad>",
    "added_tokens_decoder": {},
}


def model_folder(folder: Path, **settings: Any) -> Path:
    """A folder with the tiny checkpoint's tokenizer and settings of its own."""
    folder.mkdir(exist_ok=True)
    shutil.copyfile(TINY / "tokenizer.json", folder / "tokenizer.json")
    (folder / "tokenizer_config.json").write_text(json.dumps({**TOKENS, **settings}), encoding="utf-8")
    return folder


def expected(folder: Path, text: str = TEXT) -> str:
    from transformers import AutoTokenizer

    message = [{"role": "user", "content": text}]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return str(tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("name", CONSTRUCTS)
def test_a_prompt_is_that_of_transformers(tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path / "m", chat_template=CONSTRUCTS[name])
    assert chat_prompt(folder, TEXT) == expected(folder)


@pytest.mark.parametrize("name", REFUSED)
def test_a_template_that_fails_is_one_line(tmp_path: Path, name: str) -> None:
    folder = model_folder(tmp_path / "m", chat_template=REFUSED[name])
    with pytest.raises((Exception,)):  # transformers lets each error through as it is
        expected(folder)
    with pytest.raises(BundleError, match=r"its chat template does not render \(.+\); pass --raw") as found:
        chat_prompt(folder, TEXT)
    assert "\n" not in str(found.value)


NAMED = [{"name": "default", "template": "D{{ bos_token }}"}, {"name": "tool_use", "template": "T"}]


@pytest.mark.parametrize(
    ("files", "settings"),
    [
        ({}, {"chat_template": NAMED}),
        ({}, {"chat_template": {"default": "O", "rag": "R"}}),
        ({"chat_template.jinja": "J\n"}, {"chat_template": "S"}),
        ({"chat_template.jinja": "J", "additional_chat_templates/tool_use.jinja": "T"}, {"chat_template": "S"}),
        ({"additional_chat_templates/default.jinja": "A"}, {"chat_template": "S"}),
        ({"chat_template.json": '{"chat_template": "P"}'}, {"chat_template": "S"}),
        ({"special_tokens_map.json": '{"bos_token": "<pad>"}'}, {"chat_template": "{{ bos_token }}"}),
    ],
)
def test_the_template_is_the_one_that_transformers_takes(
    tmp_path: Path, files: dict[str, str], settings: dict[str, Any]
) -> None:
    folder = model_folder(tmp_path / "m", **settings)
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    assert chat_prompt(folder, TEXT) == expected(folder)


def test_the_older_map_of_special_tokens_overrides(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m", chat_template="{{ bos_token }}")
    settings = {name: value for name, value in TOKENS.items() if name != "added_tokens_decoder"}
    settings["chat_template"] = "{{ bos_token }}{{ unk_token }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    older = {"bos_token": {"content": "<pad>", "lstrip": False, "normalized": False, "rstrip": False}}
    (folder / "special_tokens_map.json").write_text(json.dumps(older), encoding="utf-8")
    assert chat_prompt(folder, TEXT) == expected(folder) == "<pad>"


def test_a_processor_s_template_counts_where_the_tokenizer_has_none(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "chat_template.json").write_text('{"chat_template": "P{{ messages[0].content }}"}', encoding="utf-8")
    assert chat_prompt(folder, "x") == "Px"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chat_template": [{"name": "rag", "template": "R"}, {"name": "tool_use", "template": "T"}]}, "rag, tool_use"),
        ({"chat_template": [{"name": "rag"}]}, "neither a text nor a list"),
        ({"chat_template": ["x"]}, "neither a text nor a list"),
    ],
)
def test_templates_without_a_default_are_refused_in_one_line(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(BundleError, match=message) as found:
        chat_template(model_folder(tmp_path / "m", **settings))
    assert "\n" not in str(found.value)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    folder = model_folder(tmp_path / "m")
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="not a chat template in UTF-8"):
        chat_template(folder)


def test_bundle_and_packages_carry_the_same_template(tmp_path: Path) -> None:
    from kvparity.exporter.contract.package import write_package
    from tests.packaging_bundles import checkpoint, export_to

    source = checkpoint("llama", tmp_path / "hf")
    model_folder(source, chat_template=NAMED)
    named = source / "additional_chat_templates" / "tool_use.jinja"
    named.parent.mkdir()
    named.write_text("T", encoding="utf-8")
    (source / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content | tojson }}", encoding="utf-8")
    bundle = export_to(source, tmp_path / "b")
    assert chat_templates(bundle.root) == chat_templates(source)
    assert "additional_chat_templates/tool_use.jinja" in {
        entry.path for entry in Bundle.open(bundle.root).manifest.files
    }
    for tool in ("genai", "transformersjs"):
        folder = tmp_path / tool
        write_package(bundle, tool, folder)
        assert json.loads((folder / "tokenizer_config.json").read_text("utf-8"))["chat_template"] == chat_template(
            source
        )
        assert chat_prompt(folder, TEXT) == chat_prompt(source, TEXT) == expected(source)
