/** Panel 2: the loss over the probability of the target, and how hard each cost pulls at its logit. */

import { Chart } from "./chart.js";
import { element, figure, format, heading, slider, swatch } from "./dom.js";

const LOGITS = Array.from({ length: 281 }, (_, i) => -7 + i * 0.05);
const COSTS = [
    ["cross", "cross-entropy", "−log p"],
    ["focal", "focal loss", "(1 − p)ᵞ · −log p"],
    ["quadratic", "quadratic cost", "½ (1 − p)²"],
    ["binary", "cross-entropy, if the answer is no", "−log(1 − p)"],
];

/**
 * The row is [z, 0]: the target and one other class.
 * @param {Element} root
 * @param {Object} kernels
 * @param {import("./state.js").State} state
 * @returns {(probability: number) => void} moves the point to a probability
 */
export function curve(root, kernels, state) {
    let logit = state.number("curve.z", -2, -7, 7);
    let gamma = state.number("curve.gamma", 2, 0.5, 5);
    const quarters = [0, 0.25, 0.5, 0.75, 1];
    const x = { domain: [0, 1], label: "p, probability of the target", ticks: quarters, show: (p) => format(p, 2) };

    const point = slider({
        name: "curve-z",
        label: "logit of the target, z",
        min: -7,
        max: 7,
        step: 0.05,
        value: logit,
        show: (value) => format(value, 2),
        change(value) {
            logit = value;
            update();
        },
    });
    const focus = slider({
        name: "curve-gamma",
        label: "focal γ",
        min: 0.5,
        max: 5,
        step: 0.1,
        value: gamma,
        show: (value) => format(value, 1),
        change(value) {
            gamma = value;
            update();
        },
    });
    const pictures = element("div", { class: "two" });
    const [left, right] = ["Cost", "Pull: minus the derivative by z"].map((title) => {
        const figureNode = element("figure", {}, element("figcaption", {}, title));
        pictures.append(figureNode);
        return figureNode;
    });
    const price = new Chart(left, {
        x,
        y: { domain: [0, 5], label: "cost, nats", ticks: [0, 1, 2, 3, 4, 5] },
        height: 300,
        name: "curve-cost",
    });
    const pull = new Chart(right, {
        x,
        y: { domain: [0, 1.25], label: "pull", ticks: [...quarters, 1.25], show: (g) => format(g, 2) },
        height: 300,
        name: "curve-pull",
    });

    const probability = figure("curve-p");
    const cells = COSTS.map(([key]) => [figure(`curve-${key}-cost`), figure(`curve-${key}-pull`)]);
    const legend = element(
        "table",
        { class: "legend" },
        element("caption", {}, "At p = ", probability.node),
        heading("cost", "value", "pull"),
        element(
            "tbody",
            {},
            ...COSTS.map(([key, name, formula], i) =>
                element(
                    "tr",
                    { class: key },
                    element("th", { scope: "row" }, swatch(), name, " ", element("span", { class: "term" }, formula)),
                    element("td", {}, cells[i][0].node),
                    element("td", {}, cells[i][1].node),
                ),
            ),
        ),
    );
    root.append(element("div", { class: "two" }, point.node, focus.node), pictures, legend);
    update();

    /** Cost and derivative by z of every cost, at each of the logits. */
    function costs(logits) {
        const rows = Float64Array.from(logits.flatMap((z) => [z, 0]));
        const targets = new Int32Array(logits.length);
        const cross = kernels.crossEntropyRows(rows, targets, 2);
        const focal = kernels.crossEntropyRows(rows, targets, 2, { focalGamma: gamma });
        const no = kernels.binaryCrossEntropy(logits, targets);
        return logits.map((_, i) => {
            const p = no.gradient[i]; // p - 0, for the answer is no
            return {
                p,
                cross: [cross.losses[i], cross.gradient[2 * i]],
                focal: [focal.losses[i], focal.gradient[2 * i]],
                quadratic: [(1 - p) ** 2 / 2, (p - 1) * p * (1 - p)],
                binary: [no.losses[i], no.gradient[i]],
            };
        });
    }

    function update() {
        const all = costs(LOGITS);
        const [here] = costs([logit]);
        probability.show(here.p);
        COSTS.forEach(([key], i) => {
            cells[i][0].show(here[key][0]);
            cells[i][1].show(-here[key][1]);
        });
        price.paint((chart) => {
            chart.axes();
            for (const [key] of [...COSTS].reverse()) chart.line(all.map((each) => [each.p, each[key][0]]), key);
            for (const [key] of [...COSTS].reverse()) {
                if (here[key][0] <= 5) chart.dot(here.p, here[key][0], key, key === "cross" ? 7 : 4.5);
            }
        });
        const [crossText, quadraticText] = [here.cross, here.quadratic].map((pair) => pair.map((each) => format(each, 3)));
        price.describe(
            `Cost over probability. At ${format(here.p, 2)} cross-entropy is ${crossText[0]}, the quadratic cost ${quadraticText[0]}.`,
        );
        pull.paint((chart) => {
            chart.axes();
            // The answer no pulls the other way, which another picture would have to show.
            for (const [key] of COSTS.slice(0, 3).reverse()) chart.line(all.map((each) => [each.p, -each[key][1]]), key);
            for (const [key] of COSTS.slice(0, 3).reverse()) {
                if (-here[key][1] <= 1.25) chart.dot(here.p, -here[key][1], key, key === "cross" ? 7 : 4.5);
            }
        });
        pull.describe(
            `Derivative over probability. At ${format(here.p, 2)} that of cross-entropy is ${crossText[1]}, ` +
                `that of the quadratic cost ${quadraticText[1]}.`,
        );
        state.keep("curve.z", Number(logit.toFixed(2)), -2);
        state.keep("curve.gamma", gamma, 2);
    }

    return (p) => {
        logit = Math.min(Math.max(Math.round(20 * Math.log(p / (1 - p))) / 20, -7), 7);
        point.value = logit;
        update();
    };
}
