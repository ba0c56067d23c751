// decode.onnx behind transformers.js: its model class loads the graph, makes the empty caches, and hands them on.
import fs from "node:fs";
import os from "node:os";
import path from "node:path";

// transformers.js reads `onnx/model.onnx` beside a config.json that names a model type which it knows.
function layOut(folder, manifest, type) {
  const home = fs.mkdtempSync(path.join(os.tmpdir(), "kvparity-transformers-"));
  process.on("exit", () => fs.rmSync(home, { recursive: true, force: true }));
  fs.mkdirSync(path.join(home, "onnx"));
  const place = (source, target) => {
    const [from, to] = [path.join(folder, source), path.join(home, "onnx", target)];
    try {
      fs.linkSync(from, to);
    } catch {
      fs.copyFileSync(from, to);
    }
  };
  place(manifest.graphs.decode.file.path, "model.onnx");
  for (const { path: name } of manifest.weights) place(name, name);
  const config = JSON.parse(fs.readFileSync(path.join(folder, "config.json"), "utf8"));
  fs.writeFileSync(path.join(home, "config.json"), JSON.stringify({ ...config, model_type: type }));
  return home;
}

export async function openTransformers(library, folder, { type = "llama", threads = "1", level = "all" }) {
  const { AutoModelForCausalLM, DynamicCache, env } = library;
  const manifest = JSON.parse(fs.readFileSync(path.join(folder, "manifest.json"), "utf8"));
  const home = layOut(folder, manifest, type);
  Object.assign(env, { allowRemoteModels: false, localModelPath: path.dirname(home) });
  const session_options = {
    graphOptimizationLevel: level === "none" ? "disabled" : level,
    intraOpNumThreads: Number(threads),
  };
  const given = { dtype: "fp32", device: "cpu", local_files_only: true, session_options };
  const model = await AutoModelForCausalLM.from_pretrained(path.basename(home), given);
  let past = null; // none: transformers.js makes empty caches itself, and positions from the mask
  let seen = 0;

  async function run(_, feeds) {
    const { input_ids, attention_mask } = feeds;
    const [tokens, total] = [input_ids.dims[1], attention_mask.dims[1]];
    if (total === tokens) [past, seen] = [null, 0];
    if (total !== seen + tokens) throw new Error(`${seen} tokens were seen, and these begin at ${total - tokens}`);
    const outputs = await model({ input_ids, attention_mask, past_key_values: past });
    const caches = Object.entries(outputs).filter(([name]) => name.startsWith("present."));
    past = new DynamicCache(Object.fromEntries(caches.map(([name, rows]) => [name.replace("present", "past_key_values"), rows])));
    seen = total;
    return outputs;
  }
  const adapted = `decode.onnx alone, as onnx/model.onnx beside a config.json of type ${type}; caches and positions are the package's`;
  return { run, adapted, settings: { device: "cpu", type, threads, level } };
}
