// Ids and probabilities of all texts: of the site's int8 models, and of fp32 graphs laid beside them.

import { load, open } from "./engine.mjs";

export async function answers(read, texts) {
  const { tokenizer, models } = await open(read);
  const read_ = texts.map((text) => tokenizer.read(text));
  const found = { ids: read_.map(({ ids }) => ids) };
  for (const { name, labels, answer } of models) {
    const graph = new Uint8Array(await (await read(`fp32/${name}.onnx`)).arrayBuffer());
    for (const [form, ask] of [["int8", answer], ["fp32", (await load(graph, labels)).answer]]) {
      const rows = [];
      for (const { ids } of read_) {
        const { probabilities } = await ask(ids);
        rows.push(["negative", "neutral", "positive"].map((label) => probabilities[label]));
      }
      found[`${name} ${form}`] = rows;
    }
  }
  return found;
}
