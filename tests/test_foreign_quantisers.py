"""ONNX Runtime's own quantisers find a bundle's products once its transposes are folded, as the page says."""

from __future__ import annotations

import logging
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from kvparity.exporter.contract.bundle import Bundle
from tests.conftest import ROOT


def operators(path: Path) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_the_page_s_text_folds_transposes_and_both_quantisers_find_every_product(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import onnx
    import onnxruntime
    from onnxruntime.quantization import quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    page = (ROOT / "docs" / "quantisation.md").read_text("utf-8")
    found = re.search(r"<!-- fold -->\n```python\n(.*?)```", page, re.DOTALL)
    assert found is not None
    monkeypatch.chdir(tmp_path)
    logging.disable(logging.INFO)
    exec(found[1].replace("BUNDLE", str(tiny_bundle.root)))

    products = {}
    for name, path in (("as it is", tiny_bundle.root / "decode.onnx"), ("folded", Path("folded.onnx"))):
        quantizer = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=True)
        quantizer.process()
        Path("nbits.onnx.data").unlink(missing_ok=True)  # onnx does not write over it
        quantizer.model.save_model_to_file("nbits.onnx", True)
        quantize_dynamic(path, "dynamic.onnx")
        products[name] = (
            operators(Path("nbits.onnx"))["MatMulNBits"],
            operators(Path("dynamic.onnx"))["MatMulInteger"],
        )
    logging.disable(logging.NOTSET)
    assert products == {"as it is": (0, 0), "folded": (56, 56)}

    feeds = {"input_ids": [[5, 6]], "attention_mask": [[1, 1]], "position_ids": [[0, 1]]}
    inputs = {name: np.asarray(value, np.int64) for name, value in feeds.items()}
    for slot in tiny_bundle.model.slots:
        for part in slot.parts:
            inputs[f"past_key_values.{slot.slot}.{part}"] = np.zeros(slot.shape(part, 1, 0), np.float32)
    logits = [
        onnxruntime.InferenceSession(str(path)).run(["logits"], inputs)[0]
        for path in (tiny_bundle.root / "decode.onnx", "folded.onnx")
    ]
    assert np.array_equal(*logits)
