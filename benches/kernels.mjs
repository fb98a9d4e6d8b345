// Loss and gradient of one row in JavaScript: kernels.wasm against the same in plain JavaScript, on one thread.
//
//     node benches/kernels.mjs [CLASSES...]
//
// The answers are compared before anything is timed. Runs go in turns; the medians are printed, in microseconds.
import { readFile } from "node:fs/promises";

const folder = new URL("../python/xent_rs/explore/", import.meta.url);
const script = `data:text/javascript;base64,${(await readFile(new URL("kernels.js", folder))).toString("base64")}`;
const { load } = await import(script);
const kernels = await load(await readFile(new URL("kernels.wasm", folder)));

/** The textbook's way: the maximum, the sum of exponentials, the quotients. */
function plain(logits, target) {
    let largest = -Infinity;
    for (let i = 0; i < logits.length; i++) {
        largest = Math.max(largest, logits[i]);
    }
    const gradient = new logits.constructor(logits.length);
    let sum = 0;
    for (let i = 0; i < logits.length; i++) {
        const exponential = Math.exp(logits[i] - largest);
        gradient[i] = exponential;
        sum += exponential;
    }
    for (let i = 0; i < logits.length; i++) {
        gradient[i] /= sum;
    }
    gradient[target] -= 1;
    return { loss: Math.log(sum) + largest - logits[target], gradient };
}

const median = (times) => times.sort((a, b) => a - b)[times.length >> 1];

/** Microseconds of each way, in turns. */
function time(ways, calls) {
    const times = ways.map(() => []);
    for (let round = 0; round < 25; round++) {
        ways.forEach((way, index) => {
            const begin = performance.now();
            for (let call = 0; call < calls; call++) {
                way();
            }
            times[index].push(((performance.now() - begin) / calls) * 1000);
        });
    }
    return times.map(median);
}

const sizes = process.argv.slice(2).map(Number);
for (const Type of [Float32Array, Float64Array]) {
    for (const classes of sizes.length ? sizes : [3, 10, 1000, 50257]) {
        const logits = Type.from({ length: classes }, () => 4 * Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(6.28 * Math.random()));
        const [ours, theirs] = [kernels.crossEntropy(logits, 1), plain(logits, 1)];
        const bound = Type === Float32Array ? 1e-5 : 1e-12;
        const error = ours.gradient.reduce((most, value, i) => Math.max(most, Math.abs(value - theirs.gradient[i])), 0);
        if (!(Math.abs(ours.loss - theirs.loss) < bound * 20 && error < bound)) {
            throw new Error(`${classes} classes: ${ours.loss} and ${theirs.loss}, gradients ${error} apart`);
        }
        const calls = Math.ceil(200000 / (classes + 100));
        const [wasm, javascript] = time([() => kernels.crossEntropy(logits, 1), () => plain(logits, 1)], calls);
        const text = `${wasm.toFixed(1)} us, plain JavaScript ${javascript.toFixed(1)} us (${(javascript / wasm).toFixed(2)})`;
        console.log(`${Type.name} ${classes} classes: ${text}`);
    }
}
