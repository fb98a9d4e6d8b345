/**
 * The losses of xent_rs in JavaScript: the package's own kernels, compiled to WebAssembly (kernels.wasm, by scripts/wasm.py).
 *
 *     import { load } from "./kernels.js";
 *     const kernels = await load();
 *     const { loss, gradient } = kernels.crossEntropy([2, 1, 0], 0, { labelSmoothing: 0.1 });
 *
 * Names and meaning are those of the Python package; so are the bits, of its level without fused multiply-add
 * (XENT_RS_SIMD=portable). Numbers are float64; logits in a Float32Array are computed with in float32, and what has their shape is a
 * Float32Array then. Bad input throws a TypeError or a RangeError before any work.
 *
 * @module
 */

/**
 * What numbers come in.
 * @typedef {ArrayLike<number>} Numbers
 */

/**
 * What numbers come out in: a Float32Array if the logits are one.
 * @typedef {Float64Array | Float32Array} Floats
 */

/**
 * What changes a cross-entropy.
 * @typedef {object} CrossEntropyOptions
 * @property {Numbers | null} [weight] A weight for each class.
 * @property {number} [labelSmoothing] The share of the target that is spread over all classes, from 0 to 1.
 * @property {number} [zLoss] The factor of logsumexp², at least 0.
 * @property {number | null} [softcap] Logits x become softcap·tanh(x / softcap) first.
 * @property {number} [temperature] What logits are divided by.
 * @property {number} [focalGamma] γ of the focal loss: the loss is multiplied by (1 − p)^γ, p the target's probability.
 * @property {number} [polyEpsilon] ε of PolyLoss: ε·(1 − p) is added to the loss.
 */

/**
 * What changes a binary cross-entropy. Weights are a number for all elements, or one for each.
 * @typedef {object} BinaryCrossEntropyOptions
 * @property {Numbers | number | null} [weight] The weight of an element.
 * @property {Numbers | number | null} [posWeight] The weight of its positive part.
 * @property {number} [labelSmoothing] The share of the target that is replaced by one half, from 0 to 1.
 * @property {number} [focalGamma] γ of the focal loss.
 * @property {number} [polyEpsilon] 0: a binary loss has no such term.
 */

/**
 * What can be told of a row.
 * @typedef {object} Statistics
 * @property {number} logsumexp
 * @property {number} argmax The class of the largest logit.
 * @property {number} maxProbability Its probability.
 * @property {number} entropy The entropy of the softmax, in nats.
 * @property {number | undefined} targetLogProbability
 * @property {number | undefined} targetRank How many classes rank above the target; -1 in a row that ranks nothing.
 */

/** Rows with this target do not count: their loss is 0, and their gradient. */
const IGNORE_INDEX = -100;

/** Arrays begin at multiples of this many bytes. */
const UNIT = 16;

/** More bytes than this there cannot be in 32 bits of address. */
const MOST_BYTES = 2 ** 32 - 2 ** 16;

const isPositive = (value) => value > 0 && value < Infinity;

/** What the options that are numbers are if they are not given, what they can be, and how that is said. */
const OPTIONS = {
    labelSmoothing: { otherwise: 0, suits: (value) => value >= 0 && value <= 1, expected: "a number from 0 to 1" },
    zLoss: { otherwise: 0, suits: (value) => value >= 0 && value < Infinity, expected: "a finite number, at least 0" },
    softcap: { otherwise: null, suits: isPositive, expected: "a positive finite number" },
    temperature: { otherwise: 1, suits: isPositive, expected: "a positive finite number" },
    focalGamma: { otherwise: 0, suits: (value) => value >= 0 && value <= 1e100, expected: "a number from 0 to 1e100" },
    polyEpsilon: { otherwise: 0, suits: Number.isFinite, expected: "a finite number" },
};

/** The options that are arrays, of which there is none if it is not given. */
const WEIGHTS = ["weight", "posWeight"];

/**
 * Load the kernels.
 *
 * @param {string | URL | ArrayBuffer | Uint8Array} [source] Where kernels.wasm is, or its bytes.
 * @returns {Promise<Kernels>}
 */
export async function load(source = new URL("kernels.wasm", import.meta.url)) {
    let bytes = source;
    if (!(source instanceof ArrayBuffer || ArrayBuffer.isView(source))) {
        const response = await fetch(source);
        if (!response.ok) {
            throw new Error(`${source} cannot be loaded: ${response.status} ${response.statusText}`);
        }
        bytes = await response.arrayBuffer();
    }
    const { instance } = await WebAssembly.instantiate(bytes);
    return new Kernels(instance.exports);
}

/** The functions; `load` makes them. */
export class Kernels {
    #exports;

    /** @param {WebAssembly.Exports} exports */
    constructor(exports) {
        this.#exports = exports;
    }

    /**
     * The cross-entropy of a row, and its gradient.
     *
     * With z = softcap·tanh(x / softcap) / temperature the loss of class y is logsumexp(z) − z_y, and its gradient softmax(z), less
     * 1 at y, times dz/dx; of probabilities t it is Σ t·(logsumexp(z) − z), and softmax(z) − t.
     *
     * @param {Numbers} logits
     * @param {number | Numbers} target A class, or a probability for each class.
     * @param {CrossEntropyOptions} [options]
     * @returns {{loss: number, gradient: Floats}}
     * @throws {RangeError} For a target that is no class, a probability below 0 or NaN, a length or an option that does not fit.
     * @throws {TypeError} For what are no numbers, and an option that there is not.
     */
    crossEntropy(logits, target, options = {}) {
        const row = rowOf(logits);
        const isClass = typeof target === "number" || typeof target === "bigint";
        const targets = isClass ? classOf(target, row.length) : probabilities("target", target, row.length);
        const { losses, gradient } = this.#crossEntropy("crossEntropy", row, targets, row.length, options);
        return { loss: losses[0], gradient };
    }

    /**
     * The cross-entropy of each row, and the gradient of each row's loss: what `crossEntropy` returns, of many rows.
     *
     * @param {Numbers} logits Row after row.
     * @param {Numbers} targets A class for each row, in an array of integers; -100 marks a row that does not count. Or a probability for
     *     each logit, in a Float64Array or a Float32Array, or any array as long as the logits if a row has more than one.
     * @param {number} classes The length of a row.
     * @param {CrossEntropyOptions} [options]
     * @returns {{losses: Floats, gradient: Floats}}
     * @throws {RangeError | TypeError} As `crossEntropy`.
     */
    crossEntropyRows(logits, targets, classes, options = {}) {
        const numbers = floats("logits", logits);
        if (!Number.isInteger(classes) || classes < 1) {
            const ErrorType = typeof classes === "number" ? RangeError : TypeError;
            throw new ErrorType(`classes is ${text(classes)}; expected an integer, at least 1`);
        }
        if (numbers.length % classes) {
            throw new RangeError(`logits have length ${numbers.length}; expected a multiple of ${classes}, the classes`);
        }
        const found = targetsOf(targets, numbers.length / classes, classes);
        return this.#crossEntropy("crossEntropyRows", numbers, found, classes, options);
    }

    /**
     * The softmax of a row, exp(x / temperature) over the sum of all of them.
     *
     * @param {Numbers} logits
     * @param {{temperature?: number}} [options]
     * @returns {Floats}
     * @throws {RangeError | TypeError} As `crossEntropy`.
     */
    softmax(logits, options = {}) {
        return this.#softmax("softmax", logits, options);
    }

    /**
     * The logarithm of the softmax of a row, x / temperature − logsumexp(x / temperature).
     *
     * @param {Numbers} logits
     * @param {{temperature?: number}} [options]
     * @returns {Floats}
     * @throws {RangeError | TypeError} As `crossEntropy`.
     */
    logSoftmax(logits, options = {}) {
        return this.#softmax("logSoftmax", logits, options);
    }

    /**
     * What can be told of a row.
     *
     * @param {Numbers} logits
     * @param {number} [target] A class.
     * @param {{temperature?: number, softcap?: number | null}} [options]
     * @returns {Statistics}
     * @throws {RangeError | TypeError} As `crossEntropy`.
     */
    statistics(logits, target = undefined, options = {}) {
        const { temperature, softcap } = optionsOf("statistics", options, ["temperature", "softcap"]);
        const row = rowOf(logits);
        const targets = target === undefined ? null : classOf(target, row.length);
        const number = [row.constructor, 1];
        const found = this.#compute(
            [row, targets],
            [number, [Float64Array, 1], number, number, number, [Float64Array, 1]],
            (logits, targets, ...results) =>
                this.#exports.row_statistics(
                    row.BYTES_PER_ELEMENT,
                    1,
                    row.length,
                    logits,
                    targets,
                    softcap ?? 0,
                    temperature,
                    ...results,
                ),
        );
        const [logsumexp, argmax, maxProbability, entropy, ...ofTarget] = found.map(([value]) => value);
        const [targetLogProbability, targetRank] = targets ? ofTarget : [];
        return { logsumexp, argmax, maxProbability, entropy, targetLogProbability, targetRank };
    }

    /**
     * The binary cross-entropy of each element, weight·((1 − t)·x + (1 + (posWeight − 1)·t)·log(1 + exp(−x))), and its gradient.
     *
     * @param {Numbers} logits
     * @param {Numbers} targets The probability t of the positive class for each logit; integers are 0 or 1.
     * @param {BinaryCrossEntropyOptions} [options]
     * @returns {{losses: Floats, gradient: Floats}}
     * @throws {RangeError | TypeError} As `crossEntropy`.
     */
    binaryCrossEntropy(logits, targets, options = {}) {
        const names = ["weight", "posWeight", "labelSmoothing", "focalGamma", "polyEpsilon"];
        const { labelSmoothing, focalGamma, polyEpsilon, ...weights } = optionsOf("binaryCrossEntropy", options, names);
        if (polyEpsilon !== 0) {
            throw new RangeError(`polyEpsilon is ${polyEpsilon}; expected 0, as a binary loss has no such term`);
        }
        const numbers = floats("logits", logits);
        const count = numbers.length;
        const positive = floats("targets", targets, count, "the length of logits");
        if (isIntegers(targets)) {
            checkEach("targets", positive, (value) => value === 0 || value === 1, "0 or 1");
        }
        const [weight, posWeight] = WEIGHTS.map((name) => {
            const value = typeof weights[name] === "number" ? new Float64Array(count).fill(weights[name]) : weights[name];
            return value === null ? null : doubles(name, value, count, "a number for each logit");
        });
        const [losses, gradient] = this.#compute(
            [numbers, positive, weight, posWeight],
            [numbers, numbers].map((like) => [like.constructor, count]),
            (logits, targets, weight, posWeight, ...results) =>
                this.#exports.binary_cross_entropy_with_grad(
                    numbers.BYTES_PER_ELEMENT,
                    count,
                    logits,
                    positive.BYTES_PER_ELEMENT,
                    targets,
                    weight,
                    posWeight,
                    labelSmoothing,
                    focalGamma,
                    ...results,
                ),
        );
        return { losses, gradient };
    }

    /**
     * The divergence of a teacher from a pupil, KL(softmax(targetLogits / temperature) || softmax(logits / temperature)), and its
     * gradient by the pupil's logits.
     *
     * @param {Numbers} logits
     * @param {Numbers} targetLogits
     * @param {{temperature?: number}} [options]
     * @returns {{loss: number, gradient: Floats}}
     * @throws {RangeError | TypeError} As `crossEntropy`.
     */
    klDivergence(logits, targetLogits, options = {}) {
        const { temperature } = optionsOf("klDivergence", options, ["temperature"]);
        const row = rowOf(logits);
        const teacher = floats("targetLogits", targetLogits, row.length, "the length of logits");
        const [[loss], gradient] = this.#compute(
            [row, teacher],
            [1, row.length].map((length) => [row.constructor, length]),
            (logits, targetLogits, ...results) =>
                this.#exports.kl_divergence_with_grad(
                    row.BYTES_PER_ELEMENT,
                    1,
                    row.length,
                    logits,
                    teacher.BYTES_PER_ELEMENT,
                    targetLogits,
                    temperature,
                    ...results,
                ),
        );
        return { loss, gradient };
    }

    /**
     * @param {string} name
     * @param {Floats} logits
     * @param {Int32Array | Floats} targets
     * @param {number} classes
     * @param {CrossEntropyOptions} given
     */
    #crossEntropy(name, logits, targets, classes, given) {
        const names = ["weight", "labelSmoothing", "zLoss", "softcap", "temperature", "focalGamma", "polyEpsilon"];
        const options = optionsOf(name, given, names);
        const { labelSmoothing, zLoss, softcap, temperature, focalGamma, polyEpsilon } = options;
        const weight = options.weight === null ? null : doubles("weight", options.weight, classes, "a number for each class");
        const areClasses = targets instanceof Int32Array;
        for (const focus of ["focalGamma", "polyEpsilon"].filter((focus) => options[focus] !== 0)) {
            const found = `${focus} is ${options[focus]} with`;
            if (!areClasses) {
                const text = "probabilities as targets; expected class indices, whose probability it looks at";
                throw new RangeError(`${found} ${text}`);
            }
            if (labelSmoothing !== 0) {
                throw new RangeError(`${found} labelSmoothing ${labelSmoothing}; expected one of them`);
            }
        }
        const [size, rows] = [logits.BYTES_PER_ELEMENT, logits.length / classes];
        const [losses, gradient] = this.#compute(
            [logits, targets, weight],
            [rows, logits.length].map((length) => [logits.constructor, length]),
            (logits, place, weight, ...results) =>
                this.#exports.cross_entropy_with_grad(
                    size,
                    rows,
                    classes,
                    logits,
                    areClasses ? 0 : targets.BYTES_PER_ELEMENT,
                    place,
                    IGNORE_INDEX,
                    weight,
                    labelSmoothing,
                    zLoss,
                    softcap ?? 0,
                    temperature,
                    focalGamma,
                    polyEpsilon,
                    ...results,
                ),
        );
        return { losses, gradient };
    }

    /**
     * @param {"softmax" | "logSoftmax"} name
     * @param {Numbers} logits
     * @param {{temperature?: number}} given
     */
    #softmax(name, logits, given) {
        const { temperature } = optionsOf(name, given, ["temperature"]);
        const row = rowOf(logits);
        const log = name === "logSoftmax" ? 1 : 0;
        const [result] = this.#compute([row], [[row.constructor, row.length]], (logits, result) =>
            this.#exports.softmax(row.BYTES_PER_ELEMENT, 1, row.length, logits, temperature, log, result),
        );
        return result;
    }

    /**
     * Copy arrays into the module's memory, let `call` write results beside them, and return copies of those.
     *
     * @param {(Float64Array | Float32Array | Int32Array | null)[]} inputs
     * @param {[Float64ArrayConstructor | Float32ArrayConstructor, number][]} results Their types and lengths.
     * @param {(...addresses: number[]) => number} call Gets the addresses of inputs and results, 0 for those that there are not.
     */
    #compute(inputs, results, call) {
        const sizes = [
            ...inputs.map((input) => input?.byteLength ?? 0),
            ...results.map(([type, length]) => type.BYTES_PER_ELEMENT * length),
        ];
        const offsets = [];
        let bytes = 0;
        for (const size of sizes) {
            offsets.push(bytes);
            bytes += Math.ceil(size / UNIT) * UNIT;
        }
        // Addresses come as signed numbers.
        const base = bytes > MOST_BYTES ? 0 : this.#exports.room(bytes) >>> 0;
        const addresses = sizes.map((size, index) => (size === 0 ? 0 : base + offsets[index]));
        if (base !== 0) {
            inputs.forEach((input, index) => {
                if (input?.length) {
                    new input.constructor(this.#exports.memory.buffer, addresses[index], input.length).set(input);
                }
            });
        }
        if (base === 0 || !call(...addresses)) {
            throw new RangeError(`there is no memory for arrays of ${bytes} bytes; expected fewer`);
        }
        // The memory may have grown, and its buffer be another one.
        return results.map(([type, length], index) =>
            new type(this.#exports.memory.buffer, addresses[inputs.length + index], length).slice(),
        );
    }
}

/** What was given, as errors say it. */
function text(value) {
    if (typeof value === "string") {
        return JSON.stringify(value);
    }
    if (Array.isArray(value) || ArrayBuffer.isView(value)) {
        const type = value.constructor.name;
        return `${/^[AI]/.test(type) ? "an" : "a"} ${type} of length ${value.length}`;
    }
    return String(value);
}

/** One or many, for errors. */
function verb(name, one, many) {
    return `${name} ${name.endsWith("s") ? many : one}`;
}

/**
 * The options of a call, each checked, those that are not given as what changes nothing.
 *
 * @param {string} name Of the function.
 * @param {Record<string, any>} given
 * @param {string[]} names
 */
function optionsOf(name, given, names) {
    if (typeof given !== "object" || given === null) {
        throw new TypeError(`options are ${text(given)}; expected an object`);
    }
    const unknown = Object.keys(given).find((key) => !names.includes(key));
    if (unknown !== undefined) {
        throw new TypeError(`${name}() got an unexpected option '${unknown}'; expected ${names.join(", ")}`);
    }
    return Object.fromEntries(
        names.map((key) => {
            const { otherwise, suits, expected } = OPTIONS[key] ?? { otherwise: null };
            const value = given[key] ?? otherwise;
            if (given[key] === null && otherwise !== null) {
                throw new TypeError(`${key} is null; expected ${expected}`);
            }
            if (value === null || suits === undefined) {
                return [key, value];
            }
            if (typeof value !== "number") {
                throw new TypeError(`${key} is ${text(value)}; expected ${expected}`);
            }
            if (!suits(value)) {
                throw new RangeError(`${key} is ${value}; expected ${expected}`);
            }
            return [key, value];
        }),
    );
}

/** Whether an array can hold nothing but integers. */
function isIntegers(value) {
    return ArrayBuffer.isView(value) && !(value instanceof Float64Array || value instanceof Float32Array);
}

/**
 * Numbers in an array of their own kind, if that is one of floats, else in a Float64Array.
 *
 * @param {string} name
 * @param {Numbers} value
 * @param {number} [length] How many there have to be.
 * @param {string} [reason] Why.
 * @returns {Floats}
 */
function floats(name, value, length = undefined, reason = undefined) {
    const isList = typeof value === "object" && value !== null && Number.isInteger(value.length);
    if (!isList || value instanceof BigInt64Array || value instanceof BigUint64Array) {
        throw new TypeError(`${verb(name, "is", "are")} ${text(value)}; expected an array of numbers`);
    }
    if (length !== undefined && value.length !== length) {
        throw new RangeError(`${verb(name, "has", "have")} length ${value.length}; expected ${length}, ${reason}`);
    }
    if (value instanceof Float64Array || value instanceof Float32Array) {
        return value;
    }
    for (let index = 0; index < value.length; index++) {
        if (typeof value[index] !== "number") {
            throw new TypeError(`${name}[${index}] is ${text(value[index])}; expected a number`);
        }
    }
    return Float64Array.from(value);
}

/** `floats`, in a Float64Array whatever they came in. */
function doubles(name, value, length, reason) {
    return Float64Array.from(floats(name, value, length, reason));
}

/** Check that each number suits. */
function checkEach(name, numbers, suits, expected) {
    for (let index = 0; index < numbers.length; index++) {
        if (!suits(numbers[index])) {
            throw new RangeError(`${name}[${index}] is ${numbers[index]}; expected ${expected}`);
        }
    }
}

/** The logits of a row. */
function rowOf(logits) {
    const row = floats("logits", logits);
    if (row.length === 0) {
        throw new RangeError("logits have length 0; expected at least one class");
    }
    return row;
}

/** A class of a row, as targets. */
function classOf(target, classes) {
    if (typeof target !== "number") {
        throw new TypeError(`target is ${text(target)}; expected an integer from 0 to ${classes - 1}`);
    }
    if (!Number.isInteger(target) || target < 0 || target >= classes) {
        throw new RangeError(`target is ${target}; expected an integer from 0 to ${classes - 1}`);
    }
    return Int32Array.of(target);
}

/** Probabilities as targets. */
function probabilities(name, targets, length) {
    const found = floats(name, targets, length, "the length of logits");
    checkEach(name, found, (value) => value >= 0, "a probability, at least 0");
    return found;
}

/** The targets of rows: classes, or probabilities. */
function targetsOf(targets, rows, classes) {
    const areFloats = targets instanceof Float64Array || targets instanceof Float32Array;
    const areMany = classes > 1 && rows > 0 && targets?.length === rows * classes && !isIntegers(targets);
    if (areFloats || areMany) {
        return probabilities("targets", targets, rows * classes);
    }
    const expected = `0 to ${classes - 1}, or ${IGNORE_INDEX}`;
    const found = floats("targets", targets, rows, "the number of rows");
    checkEach("targets", found, Number.isInteger, "an integer (a class), or a probability for each logit");
    checkEach("targets", found, (value) => value === IGNORE_INDEX || (value >= 0 && value < classes), expected);
    return Int32Array.from(found);
}
