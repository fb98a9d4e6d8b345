/** Panel 4: one sigmoid neuron, two starts, two costs: the quadratic cost has a plateau, cross-entropy has none. */

import { Chart } from "./chart.js";
import { button, calm, element, figure, format, heading, player, slider, swatch } from "./dom.js";

const EPOCHS = 300;
const SECONDS = 8; // for all epochs
const RATES = [0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1];
const RATE = 0.15;
const STARTS = [
    { name: "wrong", weight: 0.6, bias: 0.9, title: "Starts wrong, at " },
    { name: "badly-wrong", weight: 2, bias: 2, title: "Starts badly wrong, at " },
];
const COSTS = [
    { name: "quadratic", title: "quadratic cost" },
    { name: "cross", title: "cross-entropy" },
];
const Z = Array.from({ length: 121 }, (_, i) => -6 + i * 0.1);

/**
 * @param {Element} root
 * @param {Object} kernels
 * @param {import("./state.js").State} state
 */
export function neurons(root, kernels, state) {
    let rate = state.among("neurons.rate", RATE, RATES);
    let epoch = Math.round(state.number("neurons.epoch", 0, 0, EPOCHS));
    let runs = [];
    const sigmoid = Z.map((z) => [z, output(z)]);

    const play = button("Play", toggle, { class: "primary", "data-name": "neurons-play" });
    const time = slider({
        name: "neurons-epoch",
        label: "epoch",
        min: 0,
        max: EPOCHS,
        step: 1,
        value: epoch,
        show: (value) => String(value),
        change(value) {
            playing.stop();
            go(value);
        },
    });
    const speed = slider({
        name: "neurons-rate",
        label: "learning rate, of both",
        min: 0,
        max: RATES.length - 1,
        step: 1,
        value: RATES.indexOf(rate),
        show: (value) => String(RATES[value]),
        change(value) {
            rate = RATES[value];
            train();
        },
    });
    let exact = epoch;
    const playing = player(
        (milliseconds) => {
            exact += (milliseconds / 1000 / SECONDS) * EPOCHS;
            go(Math.min(Math.floor(exact), EPOCHS));
            return exact < EPOCHS;
        },
        (now) => {
            play.textContent = now ? "Pause" : "Play";
        },
    );

    const columns = STARTS.map((start) => column(start));
    root.append(
        element(
            "div",
            { class: "buttons" },
            play,
            button("Step", () => advance(1), { "data-name": "neurons-step" }),
            button("10 steps", () => advance(10)),
            button("Reset", () => {
                playing.stop();
                go(0);
            }, { "data-name": "neurons-reset" }),
        ),
        element("div", { class: "two" }, time.node, speed.node),
        element(
            "p",
            { class: "key" },
            ...COSTS.map(({ name, title }) => element("span", { class: name }, swatch(), title)),
        ),
        element("div", { class: "two" }, ...columns.map((each) => each.node)),
    );
    train();

    function toggle() {
        if (playing.playing) return playing.stop();
        if (epoch === EPOCHS) go(0);
        if (calm()) return go(EPOCHS); // nothing moves: the end at once
        exact = epoch;
        playing.start();
    }

    function advance(steps) {
        playing.stop();
        go(Math.min(epoch + steps, EPOCHS));
    }

    function go(to) {
        epoch = to;
        time.value = to;
        draw();
    }

    function output(z) {
        return kernels.softmax([z, 0])[0];
    }

    /** Cost, its derivative by z (the input is 1: by weight and bias, too) and output. */
    function look(cost, z) {
        const a = output(z);
        if (cost === "quadratic") return { z, a, cost: a ** 2 / 2, gradient: a * (a * (1 - a)) };
        const { losses, gradient } = kernels.binaryCrossEntropy([z], [0]);
        return { z, a, cost: losses[0], gradient: gradient[0] };
    }

    /** Gradient descent from both starts with both costs, all epochs. */
    function train() {
        runs = STARTS.map((start) =>
            COSTS.map(({ name }) => {
                let { weight, bias } = start;
                const course = [];
                for (let i = 0; i <= EPOCHS; i += 1) {
                    const now = look(name, weight + bias);
                    course.push(now);
                    weight -= rate * now.gradient;
                    bias -= rate * now.gradient;
                }
                return course;
            }),
        );
        draw();
    }

    function column(start) {
        const first = figure(`neurons-${start.name}-start`);
        const node = element("div", { class: "neuron" }, element("h3", {}, start.title, first.node));
        const picture = (caption) => {
            const holder = element("figure", {}, element("figcaption", {}, caption));
            node.append(holder);
            return holder;
        };
        const epochs = { domain: [0, EPOCHS], label: "epoch", ticks: [0, 100, 200, 300] };
        const place = new Chart(picture("Where it sits on the sigmoid"), {
            x: { domain: [-6, 6], label: "z = w + b", ticks: [-6, -3, 0, 3, 6] },
            y: { domain: [0, 1.04], label: "output a", ticks: [0, 0.5, 1], show: (a) => format(a, 1) },
            height: 190,
            name: `neurons-${start.name}-place`,
        });
        const numbers = COSTS.map(({ name }) =>
            ["a", "slope", "gradient"].map((what) => figure(`neurons-${start.name}-${name}-${what}`)),
        );
        node.append(
            element(
                "table",
                { class: "legend" },
                heading("", "a − 0", "× σ′", "= ∂C/∂w"),
                element(
                    "tbody",
                    {},
                    ...COSTS.map(({ name, title: text }, i) =>
                        element(
                            "tr",
                            { class: name },
                            element("th", { scope: "row" }, swatch(), text),
                            ...numbers[i].map((each) => element("td", {}, each.node)),
                        ),
                    ),
                ),
            ),
        );
        const course = new Chart(picture("Output, which is to be 0"), {
            x: epochs,
            y: { domain: [0, 1.04], label: "output a", ticks: [0, 0.5, 1], show: (a) => format(a, 1) },
            height: 190,
            name: `neurons-${start.name}-output`,
        });
        const highest = start.name === "wrong" ? 2 : 4;
        const cost = new Chart(picture("Cost"), {
            x: epochs,
            y: { domain: [0, highest * 1.04], label: "cost", ticks: [0, highest / 2, highest] },
            height: 190,
            name: `neurons-${start.name}-cost`,
        });
        return { node, first, place, course, cost, numbers };
    }

    function draw() {
        columns.forEach(({ first, place, course, cost, numbers }, i) => {
            const pair = COSTS.map(({ name }, k) => [name, runs[i][k]]);
            const now = pair.map(([name, run]) => [name, run[epoch]]);
            first.show(runs[i][0][0].a, format(runs[i][0][0].a, 2));
            now.forEach(([name, { a, gradient }], k) => {
                numbers[k][0].show(a, format(a, 3));
                // What the quadratic cost is multiplied with, and cross-entropy is not.
                numbers[k][1].show(name === "quadratic" ? a * (1 - a) : NaN, name === "quadratic" ? format(a * (1 - a), 3) : "–");
                numbers[k][2].show(gradient, format(gradient, 3));
            });
            place.paint((chart) => {
                chart.axes();
                chart.line(sigmoid, "curve-line");
                now.forEach(([name, { z, a }]) => {
                    const slope = a * (1 - a);
                    chart.line([-1.4, 1.4].map((d) => [z + d, a + d * slope]), `tangent ${name}`);
                });
                now.forEach(([name, { z, a }], k) => chart.dot(Math.max(z, -6), a, name, k === 0 ? 9 : 6));
            });
            const told = (what) => COSTS.map(({ title }, k) => `${title} ${format(now[k][1][what], 3)}`).join(", ");
            place.describe(`The sigmoid, and the neuron’s output on it at epoch ${epoch}: ${told("a")}.`);
            for (const [chart, what] of [[course, "a"], [cost, "cost"]]) {
                chart.paint(() => {
                    chart.axes();
                    for (const [name, run] of pair) {
                        const points = run.map((each, at) => [at, each[what]]);
                        chart.line(points, `${name} ahead`);
                        chart.line(points.slice(0, epoch + 1), name);
                    }
                    now.forEach(([name, each], k) => chart.dot(epoch, each[what], name, k === 0 ? 7 : 4.5));
                });
                chart.describe(`${what === "a" ? "Output" : "Cost"} until epoch ${epoch}: ${told(what)}.`);
            }
        });
        state.keep("neurons.rate", rate, RATE);
        state.keep("neurons.epoch", epoch, 0);
    }
}
