/** Panel 5: points that the reader sets, the loss over two weights, and gradient descent on it. */

import { Chart, outlines } from "./chart.js";
import { button, calm, choice, element, figure, format, player, slider } from "./dom.js";
import { Regression } from "./regression.js";

const CLASSES = ["A", "B", "C"];
const REACH = 3; // of the points
const SPAN = 8; // of the weights
const MOST_POINTS = 60;
const MOST_STEPS = 2000;
const STEPS_PER_SECOND = 40;
const BANDS = 14;
const TIE = 1e-9; // equal probabilities differ by their roundings
const NEAR = 14; // pixels within which a click means the point that is there
const RATES = [0.03, 0.1, 0.3, 1, 3, 10];
const SETS = {
    apart: {
        title: "Two groups",
        classes: 2,
        start: [-5, 3],
        points: numbersOf(`-1.9 -0.4 0  -1.2 -1.3 0  -2.3 0.7 0  -0.7 -1.9 0  -1.5 0.6 0
                           1.8 0.3 1  1.1 1.4 1  2.2 -0.8 1  0.6 1.9 1  1.4 -0.2 1`),
    },
    mixed: {
        title: "Mixed",
        classes: 2,
        start: [-5, 3],
        points: numbersOf(`-1.6 -0.5 0  -0.8 0.9 0  0.7 -0.6 0  -1.9 1.1 0  -0.4 -1.7 0
                           1.5 0.8 1  0.4 1.6 1  -0.6 0.2 1  1.9 -0.4 1  0.9 0.5 1`),
    },
    three: {
        title: "Three groups",
        classes: 3,
        start: [-4, -4],
        points: numbersOf(`-1.8 -0.9 0  -1.2 -1.6 0  -2.1 0.2 0  -0.6 -1.1 0  1.7 -0.8 1  2.2 0.1 1
                           1.1 -1.5 1  0.5 0.4 1  -0.2 2 2  0.7 1.7 2  -0.9 1.5 2  0.1 0.9 2`),
    },
};
const FIRST = "mixed";

/**
 * @param {Element} root
 * @param {Object} kernels
 * @param {import("./state.js").State} state
 */
export function landscape(root, kernels, state) {
    let classes = Math.round(state.number("landscape.classes", SETS[FIRST].classes, 2, 3));
    const triples = state.numbers("landscape.points", SETS[FIRST].points, -REACH, REACH, 0, 3 * MOST_POINTS);
    let points = unpacked(triples, classes);
    let cost = state.word("landscape.cost", ["cross", "quadratic"]);
    let rate = state.among("landscape.rate", 1, RATES);
    let smoothing = state.number("landscape.smoothing", 0, 0, 0.5);
    let weights = paired(state.numbers("landscape.w", [...SETS[FIRST].start, 0, 0], -SPAN, SPAN, 4, 4), classes);
    let adding = classes - 1;
    let chosen = 1;
    let path = [];
    let model;
    let now;
    let known = { key: "", bands: [] }; // the landscape last drawn
    let hand = [0, 0]; // where the keyboard's cross is among the points

    const grid = (reach, count) => Array.from({ length: count }, (_, i) => -reach + (2 * reach * i) / (count - 1));
    const axes = { points: grid(REACH, 49), weights: grid(SPAN, 57) };
    const figures = Object.fromEntries(["loss", "steps", "w1", "w2"].map((name) => [name, figure(`landscape-${name}`)]));
    const said = element("p", { class: "said", role: "status" });

    const play = button("Play", toggle, { class: "primary", "data-name": "landscape-play" });
    let due = 0;
    const playing = player(
        (milliseconds) => {
            due += (milliseconds / 1000) * STEPS_PER_SECOND;
            const goesOn = walk(Math.floor(due));
            due %= 1;
            draw();
            return goesOn;
        },
        (on) => {
            play.textContent = on ? "Pause" : "Play";
        },
    );

    const rates = slider({
        name: "landscape-rate",
        label: "learning rate",
        min: 0,
        max: RATES.length - 1,
        step: 1,
        value: RATES.indexOf(rate),
        show: (value) => String(RATES[value]),
        change(value) {
            rate = RATES[value];
            draw();
        },
    });
    const smoothings = slider({
        name: "landscape-smoothing",
        label: "label smoothing",
        min: 0,
        max: 0.5,
        step: 0.01,
        value: smoothing,
        show: (value) => (value ? format(value, 2) : "off"),
        change(value) {
            smoothing = value;
            pose();
        },
    });
    const choices = element("div", { class: "choices" });
    const sides = element("div", { class: "two" });
    const side = (caption) => {
        const node = element("figure", {}, element("figcaption", {}, caption));
        sides.append(node);
        return node;
    };
    const ticks = (reach) => [-reach, -reach / 2, 0, reach / 2, reach];
    const plane = new Chart(side("The points, and how sure the model is"), {
        x: { domain: [-REACH, REACH], label: "x₁", ticks: [-3, -2, -1, 0, 1, 2, 3] },
        y: { domain: [-REACH, REACH], label: "x₂", ticks: [-3, -2, -1, 0, 1, 2, 3] },
        name: "landscape-points",
    });
    const caption = element("span");
    const hills = new Chart(side(caption), {
        x: { domain: [-SPAN, SPAN], label: "w₁", ticks: ticks(SPAN) },
        y: { domain: [-SPAN, SPAN], label: "w₂", ticks: ticks(SPAN) },
        name: "landscape-loss",
    });
    for (const chart of [plane, hills]) {
        chart.node.setAttribute("tabindex", "0");
        chart.node.setAttribute("role", "application");
        chart.node.classList.add("clickable");
    }
    plane.node.addEventListener("click", (event) => put(plane.at(event), nearest(event)));
    plane.node.addEventListener("keydown", (event) => {
        const step = arrow(event, 0.1);
        if (step) hand = hand.map((each, i) => Math.min(Math.max(each + step[i], -REACH), REACH));
        else if (event.key === "Enter" || event.key === " ") {
            put(hand, points.findIndex(({ x }) => Math.hypot(x[0] - hand[0], x[1] - hand[1]) < 0.1));
        }
        else return;
        event.preventDefault();
        draw();
    });
    hills.node.addEventListener("click", (event) => start(hills.at(event)));
    hills.node.addEventListener("keydown", (event) => {
        const step = arrow(event, 0.5);
        if (!step) return;
        event.preventDefault();
        start(weights[chosen].map((each, i) => Math.min(Math.max(each + step[i], -SPAN), SPAN)));
    });

    root.append(
        choices,
        sides,
        element(
            "div",
            { class: "buttons" },
            play,
            button("Step", () => advance(1), { "data-name": "landscape-step" }),
            button("10 steps", () => advance(10)),
            button("Back to the start", () => begin(path[0]), { "data-name": "landscape-reset" }),
            button("Remove all points", () => {
                points = [];
                pose();
            }),
        ),
        element("div", { class: "two" }, rates.node, smoothings.node),
        element(
            "dl",
            { class: "statistics" },
            ...[["mean loss", "loss"], ["steps", "steps"], ["w₁", "w1"], ["w₂", "w2"]].map(([name, key]) =>
                element("div", {}, element("dt", {}, name), element("dd", {}, figures[key].node)),
            ),
        ),
        said,
        element(
            "p",
            { class: "note" },
            "A click on a point removes it. With the keyboard: among the points arrows move a cross, and Enter sets or removes " +
                "a point there; on the landscape arrows move the weights.",
        ),
    );
    offer();
    pose();

    /** The choices, which depend on the number of classes. */
    function offer() {
        const lettered = (first) => CLASSES.map((letter, c) => [String(c), letter]).slice(first, classes);
        const sets = element("select", { name: "landscape-set", onchange: () => sets.value && load(SETS[sets.value]) });
        const named = Object.entries(SETS).map(([key, { title }]) => [key, title]);
        for (const [value, title] of [["", "Load points …"], ...named]) sets.append(element("option", { value }, title));
        sets.setAttribute("aria-label", "Load points");
        const list = [
            choice("landscape-adding", "A click adds a point of class", lettered(0), String(adding), (value) => {
                adding = Number(value);
            }),
            choice("landscape-cost", "Cost", [["cross", "cross-entropy"], ["quadratic", "quadratic"]], cost, (value) => {
                cost = value;
                pose();
            }),
            choice("landscape-classes", "Classes", [["2", "2"], ["3", "3"]], String(classes), (value) => {
                classes = Number(value);
                points = points.filter(({ y }) => y < classes);
                weights = paired(weights.slice(1).flat(), classes);
                adding = Math.min(adding, classes - 1);
                chosen = Math.min(chosen, classes - 1);
                offer();
                pose();
                choices.querySelector(`[name="landscape-classes"][value="${value}"]`).focus();
            }),
        ];
        if (classes === 3) {
            const pick = choice("landscape-chosen", "Landscape of the weights of", lettered(1), String(chosen), (value) => {
                chosen = Number(value);
                draw();
            });
            list.push(pick);
        }
        choices.replaceChildren(...list, sets);
    }

    function load(set) {
        playing.stop();
        classes = set.classes;
        points = unpacked(set.points, classes);
        weights = paired([...set.start, 0, 0], classes);
        adding = classes - 1;
        chosen = 1;
        offer();
        pose();
    }

    /** The problem is another one: the path begins here. */
    function pose() {
        model = new Regression(kernels, { points, classes, cost, smoothing });
        known = { key: "", bands: [] };
        path = [weights];
        look();
        draw();
    }

    function look() {
        now = points.length ? model.evaluate(weights) : undefined;
    }

    /** Weights of the class that is shown: the path begins there. */
    function start(pair) {
        begin(weights.map((each, c) => (c === chosen ? [...pair] : each)));
    }

    function begin(from) {
        playing.stop();
        weights = from;
        path = [weights];
        look();
        draw();
    }

    function put(x, there) {
        if (there >= 0) points = points.filter((_, n) => n !== there);
        else if (points.length < MOST_POINTS) {
            points = [...points, { x: x.map((each) => Math.round(each * 10) / 10), y: adding }];
        }
        pose();
    }

    function nearest(event) {
        const box = plane.node.getBoundingClientRect();
        const [left, top] = [event.clientX - box.left, event.clientY - box.top];
        return points.findIndex(({ x }) => Math.hypot(plane.px(x[0]) - left, plane.py(x[1]) - top) < NEAR);
    }

    /** Take steps of gradient descent; false where there is no further to go. */
    function walk(steps) {
        for (let i = 0; i < steps; i += 1) {
            if (!now || path.length > MOST_STEPS) return false;
            weights = weights.map((pair, c) => pair.map((each, axis) => each - rate * now.gradient[c][axis]));
            path.push(weights);
            look();
        }
        return Boolean(now) && path.length <= MOST_STEPS && Math.hypot(...now.gradient.flat()) > 1e-5;
    }

    function advance(steps) {
        playing.stop();
        walk(steps);
        draw();
    }

    function toggle() {
        if (playing.playing) return playing.stop();
        if (path.length > MOST_STEPS) path = [weights];
        if (calm()) return advance(200); // nothing moves: two hundred steps at once
        due = 0;
        playing.start();
    }

    function draw() {
        const name = cost === "cross" ? "cross-entropy" : "quadratic cost";
        const other = classes === 3 ? `, ${CLASSES[3 - chosen]} as it is` : "";
        caption.textContent = `Mean ${name} over the weights of ${CLASSES[chosen]}${other}`;
        plane.paint(drawPlane);
        hills.paint(drawHills);
        figures.loss.show(now ? now.loss : NaN, now ? format(now.loss) : "–");
        figures.steps.show(path.length - 1, String(path.length - 1));
        figures.w1.show(weights[chosen][0], format(weights[chosen][0], 2));
        figures.w2.show(weights[chosen][1], format(weights[chosen][1], 2));
        said.textContent = "";
        if (!points.length) said.textContent = "Add a point to have a loss.";
        if (points.length === MOST_POINTS) said.textContent = `${MOST_POINTS} points are as many as there may be.`;
        const at = (pair, decimals) => pair.map((each) => format(each, decimals)).join(", ");
        plane.describe(
            `${points.length} points of ${classes} classes. Arrows move a cross, now at ${at(hand, 1)}; ` +
                `Enter sets or removes a point of class ${CLASSES[adding]}.`,
        );
        hills.describe(
            `The ${name} over two weights, now at ${at(weights[chosen], 2)}` +
                `${now ? `, where it is ${format(now.loss, 3)}` : ""}. Arrows move the weights.`,
        );
        keep();
    }

    function drawPlane(chart) {
        chart.axes();
        const fields = model.probabilities(weights, axes.points);
        fields.forEach((field, c) => {
            const region = (values, level) => {
                chart.area(outlines(values, level, axes.points, axes.points), `region class-${c}`);
            };
            const others = fields.filter((_, other) => other !== c);
            const ahead = (p, row, column) => p - Math.max(...others.map((other) => other[row][column]));
            const decides = weights.flat().some((each) => each !== 0);
            if (decides) region(field.map((line, row) => line.map((p, column) => ahead(p, row, column))), TIE);
            for (const sure of [0.75, 0.95]) region(field, sure);
        });
        for (const { x, y } of points) {
            chart.add("path", { class: `point class-${y}`, d: shape(y, chart.px(x[0]), chart.py(x[1])) });
        }
        const [x, y] = [chart.px(hand[0]), chart.py(hand[1])];
        chart.add("path", { class: "cross-hair", d: `M${x - 9} ${y}h18M${x} ${y - 9}v18` });
    }

    function drawHills(chart) {
        chart.axes();
        if (now) {
            const key = weights.map((pair, c) => (c === chosen ? "*" : pair)).join(); // all that the landscape depends on
            if (known.key !== key) known = { key, bands: bands(model.field(weights, chosen, axes.weights)) };
            for (const band of known.bands) chart.area(band, "band");
        }
        chart.line(path.map((each) => each[chosen]), "path");
        const inside = (pair) => pair.every((each) => Math.abs(each) <= SPAN);
        if (inside(path[0][chosen])) chart.dot(...path[0][chosen], "begin", 5);
        if (inside(weights[chosen])) chart.dot(...weights[chosen], "here", 7);
    }

    /** Outlines between the least and the largest loss, closer together where it is small. */
    function bands(field) {
        const values = field.flat();
        const [low, high] = [Math.min(...values), Math.max(...values)];
        const levels = Array.from({ length: BANDS }, (_, i) => low + (high - low) * ((i + 1) / (BANDS + 1)) ** 2);
        return levels.map((level) => outlines(field, level, axes.weights, axes.weights));
    }

    function keep() {
        state.keep("landscape.classes", classes, SETS[FIRST].classes);
        state.keep("landscape.points", points.flatMap(({ x, y }) => [...x, y]), SETS[FIRST].points);
        state.keep("landscape.cost", cost, "cross");
        state.keep("landscape.rate", rate, 1);
        state.keep("landscape.smoothing", smoothing, 0);
        const flat = [...weights.slice(1).flat(), 0, 0].slice(0, 4);
        state.keep("landscape.w", flat.map((each) => Number(each.toFixed(3))), [...SETS[FIRST].start, 0, 0]);
    }
}

/** Numbers of text. */
function numbersOf(text) {
    return text.trim().split(/\s+/).map(Number);
}

/** Points of triples x, y, class. */
function unpacked(numbers, classes) {
    const points = [];
    for (let i = 0; i + 2 < numbers.length; i += 3) {
        const [x1, x2, y] = numbers.slice(i, i + 3);
        points.push({ x: [x1, x2], y: Math.min(Math.max(Math.round(y), 0), classes - 1) });
    }
    return points;
}

/** A pair of weights for each class, of which the first has zeros. */
function paired(numbers, classes) {
    const pair = (c) => (c === 0 ? [0, 0] : [numbers[2 * c - 2] ?? 0, numbers[2 * c - 1] ?? 0]);
    return Array.from({ length: classes }, (_, c) => pair(c));
}

/** The outline of a point: a disc, a square, a triangle. Classes differ in more than colour. */
function shape(c, x, y) {
    if (c === 0) return `M${x - 6} ${y}a6 6 0 1 0 12 0a6 6 0 1 0 -12 0Z`;
    if (c === 1) return `M${x - 5.5} ${y - 5.5}h11v11h-11Z`;
    return `M${x} ${y - 7}l7 12h-14Z`;
}

function arrow(event, size) {
    const step = event.shiftKey ? 5 * size : size;
    return { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] }[event.key];
}
