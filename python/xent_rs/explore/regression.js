/** Softmax regression without bias on points of the plane: its loss, gradient, landscape and regions. */

export class Regression {
    #kernels;

    /**
     * @param {Object} kernels
     * @param {Object} problem
     * @param {Array<{x: [number, number], y: number}>} problem.points with their classes
     * @param {number} problem.classes
     * @param {"cross"|"quadratic"} problem.cost
     * @param {number} problem.smoothing of the labels
     */
    constructor(kernels, { points, classes, cost, smoothing }) {
        this.#kernels = kernels;
        Object.assign(this, { points, classes, cost, smoothing });
    }

    /**
     * Losses of rows of logits, and their derivatives by them.
     *
     * The quadratic cost is ½ Σ (p - t)², whose derivative by z_i is p_i (d_i - Σ d_j p_j) with d = p - t. Its
     * probabilities are those of the kernels: the gradient of cross-entropy is p - t, without smoothing.
     */
    #rows(logits, targets) {
        const { classes, smoothing } = this;
        if (this.cost === "cross") {
            return this.#kernels.crossEntropyRows(logits, targets, classes, smoothing ? { labelSmoothing: smoothing } : {});
        }
        const { gradient } = this.#kernels.crossEntropyRows(logits, targets, classes);
        const losses = new Float64Array(targets.length);
        targets.forEach((target, row) => {
            const own = gradient.subarray(row * classes, (row + 1) * classes);
            const p = own.map((g, c) => g + Number(c === target));
            const d = own.map((g, c) => g + smoothing * (Number(c === target) - 1 / classes));
            const mean = d.reduce((sum, each, c) => sum + each * p[c], 0);
            losses[row] = d.reduce((sum, each) => sum + each * each, 0) / 2;
            own.forEach((_, c) => {
                own[c] = p[c] * (d[c] - mean);
            });
        });
        return { losses, gradient };
    }

    /** Mean loss and its gradient, a pair for each class; that of the first class is 0, for its weights stay 0. */
    evaluate(weights) {
        const count = this.points.length;
        const logits = new Float64Array(count * this.classes);
        this.points.forEach(({ x }, n) => {
            weights.forEach((w, c) => {
                logits[n * this.classes + c] = w[0] * x[0] + w[1] * x[1];
            });
        });
        const { losses, gradient } = this.#rows(logits, this.#targets());
        const slopes = weights.map(() => [0, 0]);
        this.points.forEach(({ x }, n) => {
            for (let c = 1; c < this.classes; c += 1) {
                for (const axis of [0, 1]) slopes[c][axis] += (gradient[n * this.classes + c] * x[axis]) / count;
            }
        });
        return { loss: mean(losses), gradient: slopes };
    }

    /** Mean losses where the weights of one class are those of a grid, rows from low to high second weight. */
    field(weights, chosen, axis) {
        const { points, classes } = this;
        const count = points.length;
        const logits = new Float64Array(axis.length ** 2 * count * classes);
        let at = 0;
        for (const second of axis) {
            for (const first of axis) {
                for (const { x } of points) {
                    weights.forEach((w, c) => {
                        const [one, two] = c === chosen ? [first, second] : w;
                        logits[at + c] = one * x[0] + two * x[1];
                    });
                    at += classes;
                }
            }
        }
        const targets = new Int32Array(axis.length ** 2 * count);
        for (let start = 0; start < targets.length; start += count) targets.set(this.#targets(), start);
        const { losses } = this.#rows(logits, targets);
        return axis.map((_, row) =>
            axis.map((__, column) => {
                const start = (row * axis.length + column) * count;
                return mean(losses.subarray(start, start + count));
            }),
        );
    }

    /** Probabilities of every class on a grid of places: a field for each class. */
    probabilities(weights, axis) {
        const { classes } = this;
        const logits = new Float64Array(axis.length ** 2 * classes);
        let at = 0;
        for (const second of axis) {
            for (const first of axis) {
                for (const w of weights) {
                    logits[at] = w[0] * first + w[1] * second;
                    at += 1;
                }
            }
        }
        const { gradient } = this.#kernels.crossEntropyRows(logits, new Int32Array(axis.length ** 2), classes);
        // The target is class 0 everywhere, so the gradient is p - 1 there and p elsewhere.
        const probability = (row, column, c) => gradient[(row * axis.length + column) * classes + c] + Number(c === 0);
        return weights.map((_, c) => axis.map((__, row) => axis.map((___, column) => probability(row, column, c))));
    }

    #targets() {
        return Int32Array.from(this.points, ({ y }) => y);
    }
}

function mean(values) {
    return values.reduce((sum, each) => sum + each, 0) / values.length;
}
