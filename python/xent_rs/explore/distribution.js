/** Probabilities that a reader moves: they add up to 1, and are multiples of 1/10,000, which read well. */

const PARTS = 10_000;

/** Divide by the sum; zeros become equal shares. */
export function normalised(values) {
    const sum = values.reduce((total, value) => total + value, 0);
    return rounded(sum > 0 ? values.map((value) => value / sum) : values.map(() => 1 / values.length));
}

/** Give one a new value; the others share the rest in the proportions that they had. */
export function redistributed(values, moved, value) {
    const others = values.length - 1;
    const rest = values.reduce((sum, each, i) => (i === moved ? sum : sum + each), 0);
    const given = values.map((each, i) => {
        if (i === moved) return value;
        return rest > 0 ? (each / rest) * (1 - value) : (1 - value) / others;
    });
    return rounded(given, moved);
}

/** Round, and give what that leaves to the largest, or the largest but one that is to stay. */
function rounded(values, staying) {
    const parts = values.map((value) => Math.round(value * PARTS));
    const left = PARTS - parts.reduce((sum, each) => sum + each, 0);
    const others = parts.map((each, i) => (i === staying ? -1 : each));
    parts[others.indexOf(Math.max(...others))] += left;
    return parts.map((each) => each / PARTS);
}
