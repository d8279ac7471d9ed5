// Models in this page: an exported folder's tokenizer and graphs, run by onnxruntime's wasm on one thread.

import * as ort from "./vendor/ort.mjs";
import { Tokenizer } from "./vendor/tokenizers.mjs";

const spaces = /[\s\u001c-\u001f\u0085]+/u; // where Python's str.split() splits

/** A file as bytes; one that ends in .xz is unpacked. `read` is fetch or does the same in Node. */
async function bytes(read, path) {
  const answer = await read(path);
  if (!answer.ok) throw new Error(`${path}: ${answer.status}`);
  if (!path.endsWith(".xz")) return new Uint8Array(await answer.arrayBuffer());
  const stream = new globalThis["xz-decompress"].XzReadableStream(answer.body);
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function json(read, path) {
  return JSON.parse(new TextDecoder().decode(await bytes(read, path)));
}

/** Everything the site has: its models, ready to answer, and examples. `tell` is told what has arrived. */
export async function open(read, tell = () => {}) {
  const site = await json(read, "models.json");
  const fetched = (path) => bytes(read, path).then((found) => { tell(path); return found; });
  const files = [fetched("vendor/ort.wasm.xz"), ...site.models.map((one) => fetched(one.file))];
  const words = [json(read, "tokenizer.json.xz"), json(read, "tokenizer_config.json")];
  const tokenizer = new Reader(...await Promise.all(words));
  const [wasm, ...graphs] = await Promise.all(files);
  start(wasm);
  const models = [];
  for (const [i, one] of site.models.entries()) {
    models.push({ ...one, ...await load(graphs[i], one.labels) });
  }
  return { tokenizer, models, examples: site.examples };
}

/** A model's earlier selves, fetched when asked for. */
export function earlier(read, model) {
  return Promise.all(model.earlier.map(async (one) => ({ ...one, ...await load(await bytes(read, one.file), model.labels) })));
}

/** One thread: more would need headers that a plain server does not send. */
export function start(wasm) {
  ort.env.wasm.wasmBinary = wasm.buffer;
  ort.env.wasm.numThreads = 1;
}

export class Reader {
  constructor(pieces, config) {
    this.tokenizer = new Tokenizer(pieces, config);
    this.longest = config.model_max_length;
  }

  /** A text as comet_lib reads it: NFC, single spaces, cut where training cut. */
  read(text) {
    const clean = text.normalize("NFC").split(spaces).filter(Boolean).join(" ");
    const { ids, tokens } = this.tokenizer.encode(clean);
    const cut = (all) => (all.length > this.longest ? [...all.slice(0, this.longest - 1), all.at(-1)] : all);
    return { ids: cut(ids), tokens: cut(tokens) };
  }
}

/** A graph that answers ids with probabilities, milliseconds, and for each layer { mean, heads } of maps n * n. */
export async function load(graph, labels) {
  const session = await ort.InferenceSession.create(graph);
  const layers = session.outputNames.filter((name) => name.startsWith("attentions."));
  return {
    async answer(ids) {
      const begun = performance.now();
      const whole = (values) => new ort.Tensor("int64", BigInt64Array.from(values, BigInt), [1, ids.length]);
      const found = await session.run({ input_ids: whole(ids), attention_mask: whole(ids.map(() => 1)) });
      const milliseconds = performance.now() - begun;
      const logits = Array.from(found.logits.data), top = Math.max(...logits);
      const shares = logits.map((one) => Math.exp(one - top));
      const sum = shares.reduce((a, b) => a + b);
      return {
        milliseconds,
        probabilities: Object.fromEntries(labels.map((label, i) => [label, shares[i] / sum])),
        maps: layers.map((name) => headsAndMean(found[name])),
      };
    },
  };
}

function headsAndMean({ data, dims }) {
  const [, count, n] = dims;
  const mean = new Float32Array(n * n);
  data.forEach((value, i) => { mean[i % (n * n)] += value / count; });
  return { mean, heads: Array.from({ length: count }, (_, h) => data.slice(h * n * n, (h + 1) * n * n)) };
}
