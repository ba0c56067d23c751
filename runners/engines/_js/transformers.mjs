// decode.onnx behind transformers.js: its model class loads the graph, makes the empty caches, and hands them on.
import fs from "node:fs";
import path from "node:path";

// `folder` is what `cli.py package --to transformersjs` writes.
export async function openTransformers(library, folder, { threads = "1", level = "all" }) {
  const { AutoModelForCausalLM, DynamicCache, env } = library;
  const { model_type: type } = JSON.parse(fs.readFileSync(path.join(folder, "config.json"), "utf8"));
  Object.assign(env, { allowRemoteModels: false });
  const session_options = {
    graphOptimizationLevel: level === "none" ? "disabled" : level,
    intraOpNumThreads: Number(threads),
  };
  const given = { device: "cpu", local_files_only: true, session_options };
  const model = await AutoModelForCausalLM.from_pretrained(folder, given);
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
