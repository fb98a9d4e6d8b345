/** Panel 3: cross-entropy as the sum of entropy and divergence, and how divergence is not symmetric. */

import { normalised, redistributed } from "./distribution.js";
import { button, element, figure, format, slider, swatch } from "./dom.js";

const OUTCOMES = ["sun", "cloud", "rain"];
const START = { p: [0.6, 0.3, 0.1], q: [0.2, 0.3, 0.5] };
const TITLES = { p: ["The truth, ", "p"], q: ["The model’s forecast, ", "q"] };

/**
 * @param {Element} root
 * @param {Object} kernels
 * @param {import("./state.js").State} state
 */
export function divergence(root, kernels, state) {
    const given = {};
    const sliders = {};
    const count = OUTCOMES.length;
    for (const name of ["p", "q"]) {
        given[name] = normalised(state.numbers(`divergence.${name}`, START[name], 0, 1, count, count));
    }

    const groups = Object.entries(TITLES).map(([name, [title, letter]]) => {
        sliders[name] = OUTCOMES.map((outcome, i) =>
            slider({
                name: `divergence-${name}-${i}`,
                label: outcome,
                min: 0,
                max: 1,
                step: 0.01,
                value: given[name][i],
                className: `share ${name}`,
                change(value) {
                    given[name] = redistributed(given[name], i, value);
                    show(name, i);
                    update();
                },
            }),
        );
        return element(
            "fieldset",
            { class: `distribution ${name}` },
            element("legend", {}, title, element("i", {}, letter)),
            ...sliders[name].map((each) => each.node),
        );
    });

    const sums = [sum("p", "q"), sum("q", "p")];
    const said = element("p", { class: "said", role: "status" });
    root.append(
        element("div", { class: "two" }, ...groups),
        element(
            "div",
            { class: "buttons" },
            button("Let q be p", () => set(given.p, given.p)),
            button("Swap p and q", () => set(given.q, given.p)),
            button("A model that rules out rain", () => {
                set(given.p, normalised([given.q[0] + 0.01, given.q[1] + 0.01, 0]));
            }),
            button("Reset", () => set(START.p, START.q)),
        ),
        ...sums.map((each) => each.node),
        said,
    );
    update();

    function set(p, q) {
        given.p = [...p];
        given.q = [...q];
        show("p");
        show("q");
        update();
    }

    function show(name, except) {
        sliders[name].forEach((each, i) => {
            if (i !== except) each.value = given[name][i];
        });
    }

    /** The bar of H(first, second) = H(first) + KL(first ‖ second). */
    function sum(first, second) {
        const names = [`H(${first}, ${second})`, `H(${first})`, `KL(${first} ∥ ${second})`];
        const kinds = ["cross", "entropy", "divergence"];
        const figures = kinds.map((kind) => figure(`divergence-${kind}-${first}${second}`));
        const term = (i) =>
            element(
                "span",
                { class: `part ${kinds[i]}` },
                swatch(),
                element("span", { class: "term" }, names[i]),
                " ",
                figures[i].node,
            );
        const segments = [element("i", { class: "entropy" }), element("i", { class: "divergence" })];
        const node = element(
            "div",
            { class: "sum" },
            element("p", { class: "equation" }, term(0), " = ", term(1), " + ", term(2)),
            element("div", { class: "stack", "aria-hidden": "true" }, ...segments),
        );
        return {
            node,
            numbers() {
                const [of, from] = [given[first], given[second]].map((each) => each.map(Math.log));
                return [
                    kernels.crossEntropy(from, given[first]).loss,
                    kernels.statistics(of).entropy,
                    kernels.klDivergence(from, of).loss,
                ];
            },
            show(values, widest) {
                values.forEach((value, i) => figures[i].show(value));
                segments[0].style.setProperty("--width", String(values[1] / widest));
                segments[1].style.setProperty("--width", String(Math.min(values[2] / widest, 1 - values[1] / widest)));
                node.classList.toggle("endless", values[2] === Infinity);
            },
        };
    }

    function update() {
        const values = sums.map((each) => each.numbers());
        const widest = Math.max(2, ...values.map(([cross]) => cross).filter(Number.isFinite));
        sums.forEach((each, i) => each.show(values[i], widest));
        said.textContent = sentence(values[0][2], values[1][2]);
        for (const name of ["p", "q"]) {
            state.keep(`divergence.${name}`, given[name], START[name]);
        }
    }
}

/** What there is to see in the divergences of both directions. */
function sentence(forward, backward) {
    if (forward === Infinity) return "The model rules out what does happen, and pays without bound for it.";
    if (forward < 1e-6) return "The forecast is the truth: no divergence, and the entropy alone is left.";
    if (backward === Infinity) return "The other way round there is no bound: the truth never has what the model takes for possible.";
    const times = format(Math.max(forward, backward) / Math.min(forward, backward), 1);
    if (times === "1.0") return "The two directions happen to agree here; in general they do not.";
    const larger = forward > backward ? "KL(p ∥ q)" : "KL(q ∥ p)";
    return `${larger} is ${times} times the other direction: each weighs the logarithms with its own first distribution.`;
}
