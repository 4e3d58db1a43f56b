// llama.cpp, through node-llama-cpp, as benchmarks/peers.py asks for it: a job comes as a line of
// JSON, and its speed in tokens a second goes back as another.
//
//     node llama.mjs FOLDER-WITH-NODE_MODULES MODEL.gguf THREADS CONTEXT UNTIMED

import path from "node:path";
import {createInterface} from "node:readline";
import {pathToFileURL} from "node:url";

const [folder, modelPath, ...sizes] = process.argv.slice(2);
const [threads, contextSize, untimed] = sizes.map(Number);
const library = path.resolve(folder, "node_modules/node-llama-cpp/dist/index.js");
const {getLlama} = await import(pathToFileURL(library));

const llama = await getLlama({
    gpu: false, build: "never", skipDownload: true, logLevel: "error", maxThreads: threads
});
const model = await llama.loadModel({modelPath});
const context = await model.createContext({contextSize, threads});
const sequence = context.getSequence();

/** So many ids of text, which may be any. */
const ids = (count) => Array.from({length: count}, (_, i) => 100 + (7919 * i) % 40000);

/** Tokens a second of one run: of reading, or of writing once `untimed` are written. */
async function speed({before, written}) {
    await sequence.clearHistory();
    let began = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(ids(written ? before - 1 : before));
    if (!written) return before * 1e3 / (performance.now() - began);
    let count = 0;
    // The likeliest each time; the end of a conversation is no end here.
    for await (const _ of sequence.evaluate([1], {temperature: 0, yieldEogToken: true})) {
        count += 1;
        if (count === untimed) began = performance.now();
        if (count === written) break;
    }
    return (written - untimed) * 1e3 / (performance.now() - began);
}

for await (const line of createInterface({input: process.stdin})) {
    const job = JSON.parse(line);
    await speed(job); // as everywhere, a first run is not timed
    console.log(JSON.stringify({speed: await speed(job)}));
}
process.exit(0);
