// The frames of runners/isolation/wire.py in JavaScript, for Node and for browsers: a length, a header in JSON, the bytes of tensors.
const ARRAYS = {
  float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array,
  float16: Uint16Array, uint8: Uint8Array, bool: Uint8Array,
};

// `take(count)` gives the next bytes of the frame, `Tensor` is the engine's own class.
export function decode(take, Tensor) {
  const length = new DataView(new Uint8Array(take(4)).buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(take(length)));
  const feeds = {};
  for (const { name, dtype, shape } of header.tensors ?? []) {
    const Kind = ARRAYS[dtype];
    if (!Kind) throw new Error(`there are no tensors of ${dtype} here`);
    const size = shape.reduce((product, n) => product * n, 1);
    const aligned = new Uint8Array(take(size * Kind.BYTES_PER_ELEMENT)).buffer; // a copy, to be viewed as any type
    feeds[name] = new Tensor(dtype, new Kind(aligned, 0, size), shape);
  }
  return [header, feeds];
}

export function encode(header, outputs = {}) {
  const tensors = [];
  const pieces = [];
  for (const [name, { type, dims, data }] of Object.entries(outputs)) {
    tensors.push({ name, dtype: type, shape: [...dims] });
    pieces.push(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }
  const text = new TextEncoder().encode(JSON.stringify({ ...header, tensors }));
  const length = new Uint8Array(4);
  new DataView(length.buffer).setUint32(0, text.length, true);
  return [length, text, ...pieces];
}

// Answers frames until one says close. `receive()` gives a frame's `take`, `send(pieces)` sends one back, and
// `open(header)` gives the engine's `info`, its class `Tensor`, and `run(graph, feeds)`.
export async function serve({ open, receive, send }) {
  let session;
  for (;;) {
    try {
      const [header, feeds] = decode(await receive(), session?.Tensor);
      if (header.op === "close") return;
      if (header.op === "open") {
        session = await open(header);
        await send(encode({ info: session.info }));
        continue;
      }
      const started = performance.now();
      const outputs = await session.run(header.graph, feeds);
      await send(encode({ seconds: (performance.now() - started) / 1e3 }, outputs));
    } catch (error) {
      const message = String(error?.message ?? error).split("\n")[0];
      await send(encode({ error: { kind: error?.name ?? "Error", message } }));
    }
  }
}
