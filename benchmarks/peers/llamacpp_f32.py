"""llama.cpp on the GGUF file's weights spelled out in float32, by gguf's own writer: of our class."""

from __future__ import annotations

from pathlib import Path

import llamacpp

PLAYS_GGUF = True
REQUIREMENTS = ["llama-cpp-python==0.3.16", "gguf>=0.17"]
open = llamacpp.open


def export(checkpoint: Path, folder: Path) -> None:
    import gguf
    import numpy as np

    folder.mkdir(parents=True, exist_ok=True)
    reader = gguf.GGUFReader(checkpoint)
    architecture = str(reader.fields["general.architecture"].contents())
    writer = gguf.GGUFWriter(folder / "float32.gguf", architecture)
    for name, field in reader.fields.items():
        if name == "general.architecture" or name.startswith("GGUF."):
            continue
        kind, parts = field.types[0], {}
        if kind == gguf.GGUFValueType.ARRAY:
            parts = {"sub_type": field.types[-1]}
        value = field.contents() if name != "general.file_type" else int(gguf.LlamaFileType.ALL_F32)
        writer.add_key_value(name, value, kind, **parts)
    for tensor in reader.tensors:
        shape = tuple(int(size) for size in reversed(tensor.shape))
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.float32), 4 * int(np.prod(shape)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in reader.tensors:
        writer.write_tensor_data(gguf.dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False))
    writer.close()
