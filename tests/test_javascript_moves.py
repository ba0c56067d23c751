"""The JavaScript example goes back as a case says: an engine that answers as recorded, where it is fed as recorded."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from kvparity.exporter.contract.bundle import Bundle

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "node" / "golden.js"
ENGINE = """
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { replay } from "./golden.js";

const [bundle, place] = process.argv.slice(2);
class Tensor {
  constructor(type, data, dims) { Object.assign(this, { type, data, dims, size: data.length }); }
}
const golden = JSON.parse(readFileSync(`${bundle}/cases/golden.json`));
golden.cases = golden.cases.filter(({ steps }) => "continues" in steps[0]);
const steps = golden.cases.flatMap((found) => found.steps);
const back = steps.find(({ start, continues }, i) => continues !== null && steps[i - 1].stop > start);
if (place) back.start += Number(place);
const text = Buffer.from(JSON.stringify(golden));
const read = (name) => new Uint8Array(name === "cases/golden.json" ? text : readFileSync(`${bundle}/${name}`));
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");
const Kinds = { float32: Float32Array, int64: BigInt64Array };
function tensor(folder, { file, dtype, shape }) { // raw data are a file's last bytes
  const Kind = Kinds[dtype], bytes = read(`${folder}/${file}`);
  const size = shape.reduce((a, b) => a * b, 1) * Kind.BYTES_PER_ELEMENT;
  return new Tensor(dtype, new Kind(new Uint8Array(bytes.subarray(bytes.length - size)).buffer), shape);
}
let count = 0;
let wrong = 0;
const open = async () => ({
  run: async (feeds) => {
    const { folder, inputs, outputs } = steps[count++];
    for (const entry of inputs) if (String(tensor(folder, entry).data) !== String(feeds[entry.name].data)) wrong++;
    return Object.fromEntries(outputs.map((entry) => [entry.name, tensor(folder, entry)]));
  },
});
try {
  const seen = [];
  await replay({ ort: { Tensor }, read, open, sha256 }, [], (line) => seen.push(line));
  console.log(JSON.stringify({ seen, wrong, count }));
} catch (error) {
  console.log(JSON.stringify({ error: error.message, wrong, count }));
}
"""


def replayed(bundle: Bundle, folder: Path, *arguments: str) -> dict[str, Any]:
    shutil.copy(EXAMPLE, folder)
    (folder / "package.json").write_text('{"type": "module"}', "utf-8")
    (folder / "engine.js").write_text(ENGINE, "utf-8")
    command = ["node", "engine.js", str(bundle.root), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_calls_that_go_back_are_fed_with_what_was_recorded(subject: Bundle, tmp_path: Path) -> None:
    found = replayed(subject, tmp_path)
    assert found["wrong"] == 0
    assert {line["name"] for line in found["seen"]} >= {"replay", "resume", "rewind-rounds"}
    assert all(line["ok"] and line["worst"] == 0 for line in found["seen"])
    assert found["count"] > 15


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_one_row_more_or_less_is_noticed(subject: Bundle, tmp_path: Path) -> None:
    """Twin of the test above: other rows are fed, or there are not as many."""
    for place in ("1", "-1"):
        found = replayed(subject, tmp_path, place)
        assert found["wrong"] > 0 or "needs" in found["error"]
