/** Probabilities that a reader moves: they always add up to 1. */

/** Divide by the sum; zeros become equal shares. */
export function normalised(values) {
    const sum = values.reduce((total, value) => total + value, 0);
    return sum > 0 ? values.map((value) => value / sum) : values.map(() => 1 / values.length);
}

/** Give one a new value; the others share the rest in the proportions that they had. */
export function redistributed(values, moved, value) {
    const others = values.length - 1;
    const rest = values.reduce((sum, each, i) => (i === moved ? sum : sum + each), 0);
    return values.map((each, i) => {
        if (i === moved) return value;
        return rest > 0 ? (each / rest) * (1 - value) : (1 - value) / others;
    });
}
