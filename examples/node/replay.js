// Replays the golden vectors of a bundle in onnxruntime-node: node replay.js BUNDLE [CASE …]
// Exit codes: 0 match, 1 mismatch, 2 could not tell. Caches are handed from call to call as golden.json's chain says.
import { readFileSync } from "node:fs";
import { createHash } from "node:crypto";
import path from "node:path";
import * as ort from "onnxruntime-node";

const ARRAYS = { 1: ["float32", Float32Array], 7: ["int64", BigInt64Array], 10: ["float16", Uint16Array] };

// The four fields of an ONNX TensorProto that these files use: dims 1, data_type 2, name 8, raw_data 9.
function parseTensor(bytes) {
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; ; shift += 7n) {
      const byte = bytes[at++];
      value |= BigInt(byte & 127) << shift;
      if (byte < 128) return Number(value);
    }
  };
  const tensor = { dims: [], type: 0, name: "", raw: new Uint8Array() };
  while (at < bytes.length) {
    const key = varint();
    const [field, wire] = [key >> 3, key & 7];
    if (wire === 0) {
      const value = varint();
      if (field === 1) tensor.dims.push(value);
      if (field === 2) tensor.type = value;
      continue;
    }
    if (wire !== 2) throw new Error(`wire type ${wire} is not used in a TensorProto`);
    const length = varint();
    const piece = bytes.subarray(at, at + length);
    at += length;
    if (field === 1) for (at -= length; at < piece.byteOffset - bytes.byteOffset + length; ) tensor.dims.push(varint());
    if (field === 8) tensor.name = new TextDecoder().decode(piece);
    if (field === 9) tensor.raw = piece;
  }
  const [type, Kind] = ARRAYS[tensor.type] ?? [];
  if (!Kind) throw new Error(`${tensor.name}: data type ${tensor.type} is not read here`);
  return [tensor.name, new ort.Tensor(type, new Kind(new Uint8Array(tensor.raw).buffer), tensor.dims)];
}

function load(bundle, folder, entries) {
  return Object.fromEntries(
    entries.map(({ file, sha256 }) => {
      const bytes = readFileSync(path.join(bundle, folder, file));
      const found = createHash("sha256").update(bytes).digest("hex");
      if (found !== sha256) throw new Error(`${folder}/${file} is not the file that golden.json names`);
      return parseTensor(bytes);
    }),
  );
}

function difference(actual, expected) {
  if (!actual || actual.type !== expected.type || String(actual.dims) !== String(expected.dims)) return Infinity;
  if (actual.type !== "float32") throw new Error(`${actual.type} outputs are not compared here`);
  let worst = 0;
  for (let i = 0; i < expected.data.length; i++) {
    const apart = Math.abs(actual.data[i] - expected.data[i]);
    if (!(apart <= worst)) worst = apart; // a NaN stays
  }
  return worst;
}

async function playCase(bundle, sessions, chain, steps) {
  let worst = 0;
  let caches = {}; // the engine's own, not the reference's: an error in one call must show in the next
  for (const step of steps) {
    const feeds = { ...load(bundle, step.folder, step.inputs), ...caches };
    const outputs = await sessions[step.graph].run(feeds);
    for (const [name, expected] of Object.entries(load(bundle, step.folder, step.outputs))) {
      const apart = difference(outputs[name], expected);
      if (!(apart <= worst)) worst = apart;
    }
    caches = Object.fromEntries(Object.entries(chain).map(([out, into]) => [into, outputs[out]]));
  }
  return worst;
}

async function main([bundle, ...names]) {
  if (!bundle) throw new Error("usage: node replay.js BUNDLE [CASE …]");
  const golden = JSON.parse(readFileSync(path.join(bundle, "cases", "golden.json"), "utf8"));
  const [dtype, tolerance] = Object.entries(golden.tolerance)[0];
  const chosen = golden.cases.filter(({ name }) => names.length === 0 || names.includes(name));
  if (chosen.length === 0) throw new Error(`cases are ${golden.cases.map(({ name }) => name).join(", ")}`);
  const sessions = {};
  for (const graph of new Set(chosen.flatMap(({ steps }) => steps.map((step) => step.graph)))) {
    sessions[graph] = await ort.InferenceSession.create(path.join(bundle, graph));
  }
  let failed = false;
  for (const { name, steps } of chosen) {
    const worst = await playCase(bundle, sessions, golden.chain, steps);
    const ok = worst <= tolerance;
    failed ||= !ok;
    console.log(`${ok ? "ok      " : "MISMATCH"} ${name.padEnd(16)} ${steps.length} calls  ${worst.toExponential(2)}`);
  }
  console.log(`${chosen.length} cases, ${dtype}, tolerance ${tolerance}`);
  return failed ? 1 : 0;
}

main(process.argv.slice(2)).then(
  (code) => (process.exitCode = code),
  (error) => {
    console.error(`error: ${error.message}`);
    process.exitCode = 2;
  },
);
