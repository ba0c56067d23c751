"""Where a model comes from: a local folder, a GGUF file, or a hub id; read without holding its weights."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from kvparity.exporter.checkpoint.folder import (
    INDEX,
    WEIGHTS,
    has_weights,
    is_gguf,
    no_config,
    no_weights,
    read_object,
    refuse_adapter,
    refuse_remote_code,
    text_names,
)
from kvparity.exporter.checkpoint.half_types import set_half_types
from kvparity.exporter.checkpoint.quantized import check_quantized, unusable
from kvparity.exporter.checkpoint.text_config import model_class, text_config
from kvparity.exporter.contract.adapters import check_adapter
from kvparity.exporter.contract.checkpoint_files import CheckpointFiles
from kvparity.exporter.contract.dequantize import ask_dense, make_dense, quantization_of
from kvparity.exporter.contract.errors import ExportError, lines_of
from kvparity.exporter.contract.gguf_loading import whole_gguf
from kvparity.exporter.contract.text_part import build_language_model
from kvparity.exporter.model.attention import ATTENTION, number_layers, register_attention

__all__ = ["Checkpoint", "StoredTensor", "read_safetensors_header", "resolve"]

_VALIDATION = re.compile(r"^(Class v|V)alidation error for \w+ '[^']*': (\w+: )?")  # then comes the reason
_UNKNOWN = re.compile(r"The checkpoint you are trying to load has model type `(.*?)`.*", re.DOTALL)
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64"}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor inside a safetensors file: which file, where, and what it is."""

    file: Path
    offset: int
    length: int
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and whose config was read.

    Attributes:
        source: Hub id, or the base name of a local folder or file.
        revision: Hub revision, where there is one.
        folder: Folder that holds its files.
        gguf: Name of the GGUF file in ``folder``, where it is one.
        subfolder: Folder inside a hub repository.
        adapter: Folder of a LoRA adapter that is to be merged into the weights.
    """

    source: str
    revision: str | None
    folder: Path
    gguf: str | None = None
    subfolder: str = ""
    adapter: Path | None = None
    _tensors: dict[str, StoredTensor] = field(default_factory=dict, repr=False, compare=False)

    def files(self) -> CheckpointFiles:
        """What transformers is pointed at to load it."""
        return CheckpointFiles(self.folder, self.gguf, self.adapter)

    def config(self) -> Any:
        """The text config of the model.

        Raises:
            ExportError: transformers does not know the architecture, or the config is unreadable.
        """
        from transformers import AutoConfig

        if self.gguf:
            from kvparity.exporter.checkpoint.gguf_config import gguf_config
            from kvparity.exporter.checkpoint.gguf_file import read_gguf

            return gguf_config(read_gguf(self.folder / self.gguf))
        try:
            if not read_object(self.folder / "config.json"):
                raise ValueError("config.json holds no JSON object")
            config = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # transformers raises ValueError, KeyError, OSError, validation errors …
            refuse_remote_code(self.folder, self.source)
            raise ExportError(f"{self.source}: its config cannot be read ({_reason(error)})") from error
        if quantization_of(config) is not None:
            check_quantized(quantization_of(config) or {}, self.source)
        try:
            text = text_config(config, self._text_tensors())
        except ExportError:
            raise
        except Exception as error:  # its classes raise whatever they raise
            raise self._cannot_make(config, error) from error
        if hasattr(text, "quantization_config"):  # the bundle's weights are dense
            text = copy.deepcopy(text)
            del text.quantization_config
        return text

    def _text_tensors(self) -> Mapping[str, StoredTensor]:
        """The stored tensors by their names in the text model; none where there is only a config."""
        if not self._tensors and not has_weights(self.folder):
            return {}
        return text_names(self.stored())

    def quantization(self) -> dict[str, Any] | None:
        """How the stored weights are quantised; None where they are dense, and for a GGUF file, which says of each."""
        from transformers import AutoConfig

        if self.gguf:
            return None
        return quantization_of(AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False))

    def meta_model(self, config: Any, dtype: str = "float32") -> Any:
        """The model without weights: parameters on the meta device, buffers real, attention ready for tracing.

        Args:
            config: The text config.
            dtype: What ``from_pretrained`` would load in; weights that the class keeps in float32 are float32 here.

        Raises:
            ExportError: No causal language model exists for this config.
        """
        import torch
        from accelerate import init_empty_weights

        register_attention()
        arguments = {"dtype": torch.float32, "trust_remote_code": False}
        try:
            with init_empty_weights(include_buffers=False):
                try:
                    model = build_language_model(config, ATTENTION, **arguments)
                except KeyError as error:
                    if ATTENTION not in str(error):
                        raise
                    model = build_language_model(config, "eager", **arguments)
            model.tie_weights()
        except Exception as error:
            if model_class(config) is None:
                raise ExportError(
                    f"{self.source}: transformers has no causal language model for model_type {config.model_type!r}"
                ) from error
            raise self._cannot_make(config, error) from error
        number_layers(model)
        if dtype != "float32":
            set_half_types(model, config, dtype)
        return model.eval()

    def _cannot_make(self, config: Any, error: Exception) -> ExportError:
        text = config.get_text_config(decoder=True)
        pad, vocabulary = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
        outside = f"; pad_token_id is {pad}, the vocabulary {vocabulary}" if "adding_idx" in str(error) else ""
        return ExportError(
            f"{self.source}: transformers cannot make the {config.model_type} model that config.json describes "
            f"({_first_line(error)}{outside})"
        )

    def load(self, dtype: Any) -> Any:
        """The whole model in memory, through transformers.

        Raises:
            ExportError: The weights cannot be read.
        """
        from transformers import AutoConfig, AutoModelForCausalLM

        kind: Any = AutoModelForCausalLM
        if self.gguf:
            arguments = {"gguf_file": self.gguf, "config": self.config()}
        else:
            whole = AutoConfig.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
            kind = model_class(whole) or kind
            ask_dense(whole)
            arguments = {"config": whole, "use_safetensors": True}
        packed = None if self.gguf else quantization_of(whole)
        try:
            # Progress bars go nowhere; stages are reported by the exporter.
            with whole_gguf(), contextlib.redirect_stderr(io.StringIO()):
                model, found = kind.from_pretrained(
                    self.folder,
                    dtype=dtype,
                    attn_implementation="eager",
                    local_files_only=True,
                    output_loading_info=True,
                    **arguments,
                )
            model = make_dense(model, dtype)
        except Exception as error:
            if packed is not None:
                raise unusable(packed, self.source, error) from error
            raise ExportError(f"{self.source}: its weights cannot be loaded ({_first_line(error)})") from error
        absent = sorted(found["missing_keys"])
        if packed is not None and found["unexpected_keys"]:
            unread = ValueError(f"it leaves out {min(found['unexpected_keys'])}")
            raise unusable(packed, self.source, unread)
        if absent:  # transformers would draw them at random
            raise ExportError(f"{self.source}: its weights lack {absent[0]} ({len(absent)} missing)")
        return model.eval()

    def stored(self) -> Mapping[str, StoredTensor]:
        """Every tensor of the checkpoint's safetensors files by name; empty for a GGUF file.

        Raises:
            ExportError: A file is missing, truncated, or no safetensors file.
        """
        if not self._tensors and not self.gguf:
            for file in _safetensors_files(self.folder, self.source):
                self._tensors.update(read_safetensors_header(file))
        return self._tensors


def resolve(
    model: str, *, subfolder: str | None = None, revision: str | None = None, adapter: Path | None = None
) -> Checkpoint:
    """Find a checkpoint.

    Args:
        model: A local folder, a GGUF file, or a hub id such as ``shibatch/tinygemma4text3m``.
        subfolder: Folder inside the checkpoint that holds the model.
        revision: Hub revision.
        adapter: Folder of a LoRA adapter to merge into the weights.

    Raises:
        ExportError: Nothing usable is there; the message says what was looked for.
    """
    if adapter is not None:
        check_adapter(adapter)
        found = resolve(model, subfolder=subfolder, revision=revision)
        if found.gguf:
            raise ExportError(
                f"{model}: adapters are merged into safetensors weights; pass the model they were made of"
            )
        return replace(found, adapter=adapter)
    if not model.strip():
        raise ExportError("the name of the model is empty; pass a folder, a GGUF file or a hub id")
    path = Path(model)
    if is_gguf(path):
        from kvparity.exporter.checkpoint.gguf_file import gguf_files

        first = gguf_files(path)[0]
        return Checkpoint(first.name, None, first.parent, first.name)
    if path.is_dir():
        folder = path / subfolder if subfolder else path
        refuse_adapter(folder)
        if not (folder / "config.json").is_file():
            raise ExportError(f"{folder}: not a model, config.json is missing; {no_config(folder)}")
        return Checkpoint(path.name if path.name != "hf" else path.parent.name, None, folder)
    if path.exists():
        raise ExportError(f"{model}: not a model; pass the folder of its config.json and weights, or a GGUF file")
    if model.count("/") != 1 or model.startswith((".", "/")) or path.suffix == ".gguf":
        raise ExportError(f"{model}: no such folder or GGUF file, and not a hub id (owner/name)")
    return _from_hub(model, subfolder, revision)


def _from_hub(model: str, subfolder: str | None, revision: str | None) -> Checkpoint:
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.model", "*.jinja", "*.txt"]
    wanted = [f"{subfolder}/{pattern}" for pattern in patterns] if subfolder else patterns
    try:
        root = Path(snapshot_download(model, revision=revision, allow_patterns=wanted))
    except Exception as error:
        raise ExportError(
            f"{model}: not a local folder, and the hub did not give it ({_first_line(error)}); "
            "check the name or the connection, or pass a local folder"
        ) from error
    folder = root / subfolder if subfolder else root
    refuse_adapter(folder)
    if not (folder / "config.json").is_file():
        raise ExportError(f"{model}: has no config.json{f' in {subfolder}' if subfolder else ''}; try --subfolder")
    return Checkpoint(model, revision or root.name, folder, subfolder=subfolder or "")


def _safetensors_files(folder: Path, source: str) -> list[Path]:
    """The files that transformers takes: model.safetensors wherever it is, the shards of an index otherwise."""
    index = folder / INDEX
    if (folder / WEIGHTS).is_file():
        names = [WEIGHTS]
    elif index.is_file():
        names = _shards(index)
    else:
        raise ExportError(f"{source}: {no_weights(folder)}")
    for name in names:
        if Path(name).name != name:
            raise ExportError(f"{source}: {index.name} names {name!r}, which leaves the checkpoint folder; refused")
        if not (folder / name).is_file():
            raise ExportError(f"{source}: {name} is missing, {index.name} names it")
    return [folder / name for name in names]


def _shards(index: Path) -> list[str]:
    """The files that an index names."""
    try:
        names = {*json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
        if names and all(isinstance(name, str) and name for name in names):
            return sorted(names)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ExportError(f"{index}: not an index of weights, no weight_map from tensors to files; fetch it again")


def read_safetensors_header(path: Path) -> dict[str, StoredTensor]:
    """Read where each tensor of a safetensors file lies, without reading any.

    Format: 8 bytes little-endian header length, JSON header, data (the safetensors specification).

    Raises:
        ExportError: The file is truncated or not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    size = path.stat().st_size
    with path.open("rb") as stream:
        head = stream.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else -1
        if not 0 < length <= size - 8:
            raise ExportError(
                f"{path.name}: truncated or not safetensors: {size} bytes, header claims {length}; fetch it again"
            )
        try:
            with safe_open(path, framework="numpy"):  # the library checks types, shapes and that no tensors overlap
                header = json.loads(stream.read(length))
        except (ValueError, SafetensorError, RecursionError) as error:
            reason = _first_line(error).rpartition("header: ")[2]
            raise ExportError(
                f"{path.name}: truncated, damaged or no safetensors file ({reason}); fetch it again"
            ) from error
    return {
        name: StoredTensor(
            path,
            8 + length + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
            _SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"]),
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _first_line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it knows nothing called {error}"
    return lines_of(error)[0][:200]


def _reason(error: Exception) -> str:
    """The lines of a message, which of a failed validation are the field and then the reason."""
    text = re.sub(r"<class '(\w+)'>", r"\1", _VALIDATION.sub("", " ".join(lines_of(error)))) or type(error).__name__
    text = re.sub(r"^module 'torch' has no attribute", "its dtype is none of torch's:", text)
    text = _UNKNOWN.sub(r"model_type '\1' is none that the installed transformers has", text)
    return text if len(text) <= 400 else f"{text[:250]} … {text[-140:]}"
