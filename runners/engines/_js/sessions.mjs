// A bundle's graphs in ONNX Runtime's JavaScript packages, in Node and in browsers alike.
// `read(name)` gives a file of the bundle as bytes; `graph(name)` what a session is created from, a path or bytes.
export async function openSessions(ort, { read, graph, bytes }, { provider, threads = "1", level = "all" }) {
  const manifest = JSON.parse(new TextDecoder().decode(await read("manifest.json")));
  const options = {
    graphOptimizationLevel: level === "none" ? "disabled" : level,
    intraOpNumThreads: Number(threads),
    executionProviders: [provider],
  };
  if (bytes) {
    ort.env.wasm.numThreads = Number(threads);
    const files = manifest.weights.map(async ({ path }) => ({ path, data: await read(path) }));
    options.externalData = await Promise.all(files);
  }
  const sessions = {};
  for (const [kind, { file }] of Object.entries(manifest.graphs)) {
    sessions[kind] = await ort.InferenceSession.create(await graph(file.path), options);
  }
  const run = (kind, feeds) => {
    const names = sessions[kind].inputNames; // a host may offer more than a graph asks for
    return sessions[kind].run(Object.fromEntries(names.map((name) => [name, feeds[name]])));
  };
  return { run, settings: { provider, threads, level } };
}
