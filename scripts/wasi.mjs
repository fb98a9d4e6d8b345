// Runs a WebAssembly program that wants no more than arguments, the environment and its outputs: `cargo test` for wasm32-wasip1.
//
//     node --no-warnings scripts/wasi.mjs PROGRAM [ARGUMENTS...]
import { readFile } from "node:fs/promises";
import { argv, env, exit } from "node:process";
import { WASI } from "node:wasi";

const wasi = new WASI({ version: "preview1", args: argv.slice(2), env, returnOnExit: true });
const module = await WebAssembly.compile(await readFile(argv[2]));
exit(wasi.start(await WebAssembly.instantiate(module, wasi.getImportObject())));
