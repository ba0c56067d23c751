// Runs a bundle in a JavaScript package under Node and speaks the frames of runners/isolation/wire.py on stdin and stdout.
// Arguments: the package's name, and the folder that has node_modules. No Python in here, and no other package.
import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { serve } from "./frames.mjs";
import { openSessions } from "./sessions.mjs";
import { openTransformers } from "./transformers.mjs";

const [packageName, home] = process.argv.slice(2);
console.log = console.info = console.error; // stdout carries frames

function take(count) {
  const buffer = Buffer.alloc(count);
  for (let at = 0; at < count; ) {
    const got = fs.readSync(0, buffer, at, count - at, null);
    if (got === 0) process.exit(0); // the other side is gone
    at += got;
  }
  return buffer;
}

function send(pieces) {
  for (const piece of pieces) for (let at = 0; at < piece.length; ) at += fs.writeSync(1, piece, at, piece.length - at);
}

async function openPackage(library, folder, options) {
  if (packageName === "@huggingface/transformers") return openTransformers(library, folder, options);
  const read = (name) => new Uint8Array(fs.readFileSync(path.join(folder, name)));
  if (packageName === "onnxruntime-web") {
    return openSessions(library, { read, graph: read, bytes: true }, { ...options, provider: "wasm" });
  }
  return openSessions(library, { read, graph: (name) => path.join(folder, name) }, { ...options, provider: "cpu" });
}

const library = createRequire(path.join(home, "package.json"))(packageName);
const manifest = fs.readFileSync(path.join(home, "node_modules", packageName, "package.json"), "utf8");
const { version } = JSON.parse(manifest);

async function open(header) {
  const { run, settings, adapted } = await openPackage(library, header.bundle, header.options);
  const info = { version, adapted, settings: { ...settings, node: process.versions.node } };
  return { Tensor: library.Tensor, run, info };
}

await serve({ open, receive: async () => take, send });
process.exit(0);
