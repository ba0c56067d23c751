// Reads and replays a bundle's golden vectors with any build of onnxruntime's JavaScript API; no Node, no browser in here.
// `ort` is the module, `read(path)` gives a file of the bundle as Uint8Array, `open(path)` a session of a graph,
// `sha256(bytes)` the digest in hex.
const ARRAYS = { 1: ["float32", Float32Array], 7: ["int64", BigInt64Array], 10: ["float16", Uint16Array] };

// The four fields of an ONNX TensorProto that these files use: dims 1, data_type 2, name 8, raw_data 9.
function parseTensor(ort, bytes) {
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
    const end = varint() + at;
    if (field === 1) while (at < end) tensor.dims.push(varint()); // packed, as some writers do
    if (field === 8) tensor.name = new TextDecoder().decode(bytes.subarray(at, end));
    if (field === 9) tensor.raw = bytes.subarray(at, end);
    at = end;
  }
  const [type, Kind] = ARRAYS[tensor.type] ?? [];
  if (!Kind) throw new Error(`${tensor.name}: data type ${tensor.type} is not read here`);
  return [tensor.name, new ort.Tensor(type, new Kind(new Uint8Array(tensor.raw).buffer), tensor.dims)];
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

export async function replay({ ort, read, open, sha256 }, names, onCase) {
  const golden = JSON.parse(new TextDecoder().decode(await read("cases/golden.json")));
  const [dtype, tolerance] = Object.entries(golden.tolerance)[0];
  const chosen = golden.cases.filter(({ name }) => names.length === 0 || names.includes(name));
  if (chosen.length === 0) throw new Error(`cases are ${golden.cases.map(({ name }) => name).join(", ")}`);

  const load = async (folder, entries) => {
    const tensors = {};
    for (const entry of entries) {
      const bytes = await read(`${folder}/${entry.file}`);
      if ((await sha256(bytes)) !== entry.sha256) throw new Error(`${folder}/${entry.file} is not what golden.json names`);
      const [name, tensor] = parseTensor(ort, bytes);
      tensors[name] = tensor;
    }
    return tensors;
  };

  const sessions = {};
  let failed = false;
  const took = []; // milliseconds of each call of one token that continues another
  for (const { name, steps } of chosen) {
    let worst = 0;
    let caches = {}; // the engine's own, not the reference's: an error in one call must show in the next
    for (const step of steps) {
      sessions[step.graph] ??= await open(step.graph);
      const feeds = { ...(await load(step.folder, step.inputs)), ...caches };
      const started = performance.now();
      const outputs = await sessions[step.graph].run(feeds);
      if (step !== steps[0] && feeds.input_ids.size === 1) took.push(performance.now() - started);
      for (const [output, expected] of Object.entries(await load(step.folder, step.outputs))) {
        const apart = difference(outputs[output], expected);
        if (!(apart <= worst)) worst = apart;
      }
      caches = Object.fromEntries(Object.entries(golden.chain).map(([out, into]) => [into, outputs[out]]));
    }
    const ok = worst <= tolerance;
    failed ||= !ok;
    onCase({ name, calls: steps.length, worst, ok });
  }
  const decode = took.sort((a, b) => a - b)[took.length >> 1]; // their median; undefined where there was none
  return { failed, cases: chosen.length, dtype, tolerance, decode };
}
