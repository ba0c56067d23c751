// Runs a bundle in ONNX Runtime's JavaScript packages and speaks the frames of runners/wire.py on stdin and stdout.
// Arguments: the package's name, and the folder that has node_modules. No Python in here, and no other package.
"use strict";
const fs = require("fs");
const path = require("path");

const [packageName, home] = process.argv.slice(2);
const WEB = packageName === "onnxruntime-web";
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array,
  float16: Uint16Array, uint8: Uint8Array, bool: Uint8Array,
};
console.log = console.info = console.error; // stdout carries frames

function read(count) {
  const buffer = Buffer.alloc(count);
  for (let at = 0; at < count; ) {
    const got = fs.readSync(0, buffer, at, count - at, null);
    if (got === 0) process.exit(0); // the other side is gone
    at += got;
  }
  return buffer;
}

function write(buffer) {
  for (let at = 0; at < buffer.length; ) at += fs.writeSync(1, buffer, at, buffer.length - at);
}

function readFrame(ort) {
  const header = JSON.parse(read(read(4).readUInt32LE(0)).toString("utf8"));
  const feeds = {};
  for (const { name, dtype, shape } of header.tensors || []) {
    const Kind = ARRAYS[dtype];
    if (!Kind) throw new Error(`${packageName} has no tensors of ${dtype}`);
    const size = shape.reduce((product, n) => product * n, 1);
    const bytes = read(size * Kind.BYTES_PER_ELEMENT);
    const aligned = new Uint8Array(bytes).buffer; // a copy of its own, so that it may be viewed as any type
    feeds[name] = new ort.Tensor(dtype, new Kind(aligned, 0, size), shape);
  }
  return [header, feeds];
}

function writeFrame(header, outputs = {}) {
  const tensors = [];
  const pieces = [];
  for (const [name, tensor] of Object.entries(outputs)) {
    const data = tensor.data;
    tensors.push({ name, dtype: tensor.type, shape: [...tensor.dims] });
    pieces.push(Buffer.from(data.buffer, data.byteOffset, data.byteLength));
  }
  const text = Buffer.from(JSON.stringify({ ...header, tensors }), "utf8");
  const length = Buffer.alloc(4);
  length.writeUInt32LE(text.length);
  for (const piece of [length, text, ...pieces]) write(piece);
}

async function openGraph(ort, folder, file, weights, options) {
  const graph = path.join(folder, file);
  if (!WEB) return ort.InferenceSession.create(graph, options);
  const externalData = weights.map((name) => ({ path: name, data: new Uint8Array(fs.readFileSync(path.join(folder, name))) }));
  return ort.InferenceSession.create(new Uint8Array(fs.readFileSync(graph)), { ...options, externalData });
}

async function openBundle(ort, folder, { threads = "1", level = "all" }) {
  const manifest = JSON.parse(fs.readFileSync(path.join(folder, "manifest.json"), "utf8"));
  const options = {
    graphOptimizationLevel: level === "none" ? "disabled" : level,
    intraOpNumThreads: Number(threads),
    executionProviders: [WEB ? "wasm" : "cpu"],
  };
  if (WEB) ort.env.wasm.numThreads = Number(threads);
  const weights = manifest.weights.map((file) => file.path);
  const sessions = {};
  for (const [kind, graph] of Object.entries(manifest.graphs)) {
    sessions[kind] = await openGraph(ort, folder, graph.file.path, weights, options);
  }
  const provider = options.executionProviders[0];
  return [sessions, { provider, threads, level, node: process.versions.node }];
}

async function answer(ort, header, feeds, state) {
  if (header.op === "open") {
    [state.sessions, state.settings] = await openBundle(ort, header.bundle, header.options);
    return [{ info: { name: packageName.replace("-", "_"), version: state.version, settings: state.settings } }];
  }
  const session = state.sessions[header.graph];
  const started = process.hrtime.bigint();
  const outputs = await session.run(feeds);
  return [{ seconds: Number(process.hrtime.bigint() - started) / 1e9 }, outputs];
}

async function main() {
  const found = require.resolve(packageName, { paths: [home] });
  const ort = require(found);
  const folder = path.join(home, "node_modules", packageName);
  const state = { version: JSON.parse(fs.readFileSync(path.join(folder, "package.json"), "utf8")).version };
  for (;;) {
    try {
      const [header, feeds] = readFrame(ort);
      if (header.op === "close") process.exit(0);
      writeFrame(...(await answer(ort, header, feeds, state)));
    } catch (error) {
      writeFrame({ error: { kind: error.name || "Error", message: String(error.message || error).split("\n")[0] } });
    }
  }
}

main();
