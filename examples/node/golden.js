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

// Caches for a step that does not simply go on: those of the step that it names, their newest rows dropped; rows that
// this step dropped are those that it was fed with. `given` are the step's recorded inputs, which have the right sizes.
function continued(ort, chain, step, given, done) {
  const from = done[step.continues];
  return Object.fromEntries(Object.entries(chain).map(([out, into]) => {
    const after = from.outputs[out], before = from.feeds[into];
    if (!/\.(key|value)$/.test(out)) return [into, after];
    const [batch, heads, rows, size] = given[into].dims;
    const fresh = Math.min(from.stop - from.start, after.dims[2]);
    const old = (before ?? after).dims[2] - (before ? 0 : fresh);
    const end = old + fresh - (from.stop - step.start); // rows before the step's first slot
    if (end < rows) throw new Error(`${into} needs ${rows} rows, and step ${step.continues} left ${end}`);
    const data = new after.data.constructor(batch * heads * rows * size);
    for (let head = 0; head < batch * heads; head++)
      for (let row = 0; row < rows; row++) {
        const at = end - rows + row;
        const source = at < old && before ? before : after;
        const place = at < old ? at : at - old + after.dims[2] - fresh;
        const first = (head * source.dims[2] + place) * size;
        data.set(source.data.subarray(first, first + size), (head * rows + row) * size);
      }
    return [into, new ort.Tensor(after.type, data, given[into].dims)];
  }));
}

// Graphs cannot know that a past lacks rows or a mask lacks columns: they give wrong numbers, and no error.
function check(feeds, given, step) {
  for (const [name, { dims }] of Object.entries(given))
    if (String(feeds[name].dims) !== String(dims))
      throw new Error(`${step.folder}: ${name} has shape ${feeds[name].dims}, expected ${dims}`);
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
    const done = [];
    for (const step of steps) {
      sessions[step.graph] ??= await open(step.graph);
      const given = await load(step.folder, step.inputs);
      if ("continues" in step) caches = step.continues === null ? {} : continued(ort, golden.chain, step, given, done);
      const feeds = { ...given, ...caches };
      if (worst <= tolerance) check(feeds, given, step); // what went wrong before is a mismatch, not a wrong replay
      const started = performance.now();
      const outputs = await sessions[step.graph].run(feeds);
      if (step !== steps[0] && feeds.input_ids.size === 1) took.push(performance.now() - started);
      for (const [output, expected] of Object.entries(await load(step.folder, step.outputs))) {
        const apart = difference(outputs[output], expected);
        if (!(apart <= worst)) worst = apart;
      }
      caches = Object.fromEntries(Object.entries(golden.chain).map(([out, into]) => [into, outputs[out]]));
      done.push({ start: step.start, stop: step.stop, feeds, outputs });
    }
    const ok = worst <= tolerance;
    failed ||= !ok;
    onCase({ name, calls: steps.length, worst, ok });
  }
  const decode = took.sort((a, b) => a - b)[took.length >> 1]; // their median; undefined where there was none
  return { failed, cases: chosen.length, dtype, tolerance, decode };
}
