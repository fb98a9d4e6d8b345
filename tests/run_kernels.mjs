// Call kernels.js for tests/test_wasm.py: from standard input {script, wasm, calls: [[name, arguments]]}, to standard output a
// result or an error for each call. Numbers and arrays travel as the base64 of their bytes, so that no bit is lost.
import { readFileSync } from "node:fs";

const TYPES = { Float64Array, Float32Array, Int32Array, Uint8Array, BigInt64Array };

function decode(value) {
    if (Array.isArray(value)) {
        return value.map(decode);
    }
    if (typeof value !== "object" || value === null) {
        return value;
    }
    if ("bytes" in value) {
        const bytes = Uint8Array.from(Buffer.from(value.bytes, "base64"));
        return value.type === "number" ? new Float64Array(bytes.buffer)[0] : new TYPES[value.type](bytes.buffer);
    }
    return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, decode(item)]));
}

function encode(value) {
    if (typeof value === "number") {
        return { type: "number", bytes: Buffer.from(Float64Array.of(value).buffer).toString("base64") };
    }
    if (ArrayBuffer.isView(value)) {
        const bytes = Buffer.from(value.buffer, value.byteOffset, value.byteLength);
        return { type: value.constructor.name, bytes: bytes.toString("base64") };
    }
    return value === undefined ? null : Object.fromEntries(Object.entries(value).map(([key, item]) => [key, encode(item)]));
}

const { script, wasm, calls } = JSON.parse(readFileSync(0, "utf-8"));
const { load } = await import(script);
const kernels = await load(readFileSync(wasm));
const results = calls.map(([name, values]) => {
    try {
        return { result: encode(kernels[name](...decode(values))) };
    } catch (error) {
        return { error: error.constructor.name, message: error.message };
    }
});
process.stdout.write(JSON.stringify(results));
