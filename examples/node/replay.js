// Replays the golden vectors of a bundle in onnxruntime-node: node replay.js BUNDLE [CASE …]
// Exit codes: 0 match, 1 mismatch, 2 could not tell.
import { readFileSync } from "node:fs";
import { createHash } from "node:crypto";
import path from "node:path";
import * as ort from "onnxruntime-node";
import { replay } from "./golden.js";

const [bundle, ...names] = process.argv.slice(2);
const engine = {
  ort,
  read: (name) => new Uint8Array(readFileSync(path.join(bundle, name))),
  open: (name) => ort.InferenceSession.create(path.join(bundle, name)),
  sha256: (bytes) => createHash("sha256").update(bytes).digest("hex"),
};

function show({ name, calls, worst, ok }) {
  console.log(`${ok ? "ok      " : "MISMATCH"} ${name.padEnd(16)} ${calls} calls  ${worst.toExponential(2)}`);
}

try {
  if (!bundle) throw new Error("usage: node replay.js BUNDLE [CASE …]");
  const { failed, cases, dtype, tolerance } = await replay(engine, names, show);
  console.log(`${cases} cases, ${dtype}, tolerance ${tolerance}`);
  process.exitCode = failed ? 1 : 0;
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exitCode = 2;
}
