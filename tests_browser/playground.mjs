// What the playground answers in Node: node playground.mjs SITE TEXTS.json prints JSON.

import fs from "node:fs";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [site, texts] = process.argv.slice(2);
globalThis["xz-decompress"] = createRequire(import.meta.url)(path.resolve(site, "vendor/xz.js"));
const { answers } = await import(pathToFileURL(path.resolve(site, "answers.mjs")));
const read = async (file) => new Response(fs.readFileSync(path.resolve(site, file)));
console.log(JSON.stringify(await answers(read, JSON.parse(fs.readFileSync(texts)))));
