/** Panel 1: a row of logits, its target and options; probabilities, gradient and loss. */

import { normalised, redistributed } from "./distribution.js";
import { button, checkbox, choice, element, figure, format, slider } from "./dom.js";

const MOST = 6;
const FEWEST = 2;
const START = [2, 1, 0.1];
const TARGETS = [["index", "one class"], ["soft", "probabilities"], ["many", "yes or no"]];
const OPTIONS = {
    labelSmoothing: {
        python: "label_smoothing",
        label: "label smoothing",
        hint: "spreads this share of the target evenly",
        max: 0.5,
        step: 0.01,
        off: 0,
    },
    temperature: {
        python: "temperature",
        label: "temperature",
        hint: "divides the logits: above 1 nothing is so sure",
        min: 0.1,
        max: 5,
        step: 0.1,
        off: 1,
    },
    softcap: {
        python: "softcap",
        label: "softcap",
        hint: "bends the logits so that none is beyond ± this",
        max: 10,
        step: 0.5,
        off: 0,
    },
    zLoss: {
        python: "z_loss",
        label: "z-loss",
        hint: "adds this multiple of the squared log-sum-exp",
        max: 0.2,
        step: 0.005,
        off: 0,
        decimals: 3,
    },
    focalGamma: {
        python: "focal_gamma",
        label: "focal γ",
        hint: "multiplies the loss by (1 − p)ᵞ: what is nearly right counts less",
        max: 5,
        step: 0.1,
        off: 0,
    },
};

/**
 * @param {Element} root
 * @param {Object} kernels
 * @param {import("./state.js").State} state
 * @param {(probability: number) => void} moved told the probability of the target when the reader moves something
 */
export function row(root, kernels, state, moved) {
    let logits = state.numbers("row.z", START, -6, 6, FEWEST, MOST);
    let classes = logits.length;
    let kind = state.word("row.target", TARGETS.map(([value]) => value));
    let index = Math.round(state.number("row.y", 0, 0, classes - 1));
    const given = (name, high, other) => state.numbers(name, logits.map(other), 0, high, classes, classes);
    let soft = normalised(given("row.t", 1, (_, c) => (c === 0 ? 0.7 : 0.3 / (classes - 1))));
    let many = given("row.yes", 1, (_, c) => (c === 1 ? 0 : 1)).map(Math.round);
    let weights = given("row.w", 3, () => 1);
    let weighted = weights.some((weight) => weight !== 1);
    const options = Object.fromEntries(
        Object.entries(OPTIONS).map(([name, { min = 0, max, off }]) => [name, state.number(`row.${name}`, off, min, max)]),
    );

    // What is shown.
    const heads = element("div", { class: "heads", "aria-hidden": "true" });
    const rows = element("ol", { class: "classes", "aria-label": "Classes" });
    const loss = figure("row-loss");
    const bits = figure("row-bits");
    const said = element("p", { class: "said" });
    const statistics = ["target-probability", "logsumexp", "entropy", "rank"].map((name) => figure(`row-${name}`));
    const names = ["probability of the target", "log-sum-exp", "entropy of the probabilities, nats", "classes above the target"];
    const table = element(
        "dl",
        { class: "statistics" },
        ...names.map((name, i) => element("div", {}, element("dt", {}, name), element("dd", {}, statistics[i].node))),
    );
    const code = element("code", { "data-name": "row-python", tabindex: 0 });
    const copied = element("span", { class: "copied", role: "status" });
    let parts = [];
    let shown = false;

    // What the reader moves.
    const sliders = Object.fromEntries(
        Object.entries(OPTIONS).map(([name, { label, hint, min = 0, max, step, off, decimals = 2 }]) => [
            name,
            slider({
                name: `row-${name}`,
                label,
                hint,
                min,
                max,
                step,
                value: options[name],
                show: (value) => (value === off && name !== "temperature" ? "off" : format(value, decimals)),
                change(value) {
                    options[name] = value;
                    update();
                },
            }),
        ]),
    );
    const weighing = checkbox("row-weighted", "class weights", weighted, (checked) => {
        weighted = checked;
        if (!checked) weights = weights.map(() => 1);
        build();
    });
    const add = button("Add a class", () => resize(classes + 1));
    const remove = button("Remove a class", () => resize(classes - 1));

    root.append(
        choice("row-target", "Target", TARGETS, kind, (value) => {
            kind = value;
            build();
        }),
        element("div", { class: "table" }, heads, rows),
        element(
            "div",
            { class: "buttons" },
            add,
            remove,
            button("Random", () => {
                logits = logits.map(() => Math.round(80 * Math.random() - 40) / 10);
                build();
            }),
            button("Reset", reset),
        ),
        element(
            "div",
            { class: "two" },
            element("div", { class: "options" }, ...Object.values(sliders).map((each) => each.node), weighing),
            element(
                "div",
                { class: "answer" },
                element("p", { class: "loss" }, element("span", { class: "caption" }, "loss"), loss.node, " nats"),
                element("p", { class: "same" }, "= ", bits.node, " bits"),
                said,
                table,
            ),
        ),
        element("div", { class: "python" }, element("pre", {}, code), button("Copy", copy), copied),
    );
    build();
    shown = true;

    /** Make the lines of the classes; the number of classes or the kind of target is another. */
    function build() {
        parts = logits.map((_, c) => line(c));
        rows.replaceChildren(...parts.map((part) => part.node));
        rows.parentElement.dataset.target = kind;
        const two = kind === "soft" ? ["logit", "target"] : [kind === "index" ? "target" : "yes", "logit"];
        heads.replaceChildren(...[...two, "probability", "gradient"].map((name) => element("span", {}, name)));
        add.disabled = classes === MOST;
        remove.disabled = classes === FEWEST;
        update();
    }

    function line(c) {
        const title = `class ${c}`;
        const probability = bar("probability", `row-p-${c}`);
        const tick = element("i", { class: "tick" });
        probability.track.append(tick);
        const gradient = bar("gradient", `row-g-${c}`);
        const part = { probability, gradient, tick };
        const logit = slider({
            name: `row-z-${c}`,
            label: title,
            min: -6,
            max: 6,
            step: 0.1,
            value: logits[c],
            show: (value) => format(value, 1),
            change(value) {
                logits[c] = value;
                update();
            },
        });
        logit.input.setAttribute("aria-label", `logit of ${title}`);
        const controls = [logit.node];
        if (kind === "soft") {
            part.share = slider({
                name: `row-t-${c}`,
                label: "target",
                min: 0,
                max: 1,
                step: 0.01,
                value: soft[c],
                className: "share",
                change: (value) => share(c, value),
            });
            part.share.input.setAttribute("aria-label", `target probability of ${title}`);
            controls.push(part.share.node);
        } else {
            const input = element("input", {
                type: kind === "index" ? "radio" : "checkbox",
                name: kind === "index" ? "row-y" : `row-yes-${c}`,
                value: c,
                checked: kind === "index" ? c === index : many[c] === 1,
                "aria-label": kind === "index" ? `${title} is the target` : `${title}: yes`,
                onchange() {
                    if (kind === "index") index = c;
                    else many[c] = input.checked ? 1 : 0;
                    update();
                },
            });
            const text = element("span", {}, kind === "index" ? "target" : "yes");
            controls.unshift(element("label", { class: "pick" }, input, text));
        }
        if (weighted) {
            const weight = slider({
                name: `row-w-${c}`,
                label: "weight",
                min: 0,
                max: 3,
                step: 0.1,
                value: weights[c],
                show: (value) => format(value, 1),
                className: "weight",
                change(value) {
                    weights[c] = value;
                    update();
                },
            });
            weight.input.setAttribute("aria-label", `weight of ${title}`);
            controls.push(weight.node);
        }
        part.node = element("li", {}, ...controls, probability.node, gradient.node);
        return part;
    }

    /** Give a class a share of the target; the others share the rest as they did before. */
    function share(c, value) {
        soft = redistributed(soft, c, value);
        parts.forEach((part, other) => {
            if (other !== c) part.share.value = soft[other];
        });
        update();
    }

    function resize(count) {
        const more = count > classes;
        classes = count;
        logits = more ? [...logits, 0] : logits.slice(0, count);
        weights = more ? [...weights, 1] : weights.slice(0, count);
        many = more ? [...many, 0] : many.slice(0, count);
        soft = normalised(more ? [...soft, 0] : soft.slice(0, count));
        index = Math.min(index, count - 1);
        build();
    }

    function reset() {
        logits = [...START];
        classes = logits.length;
        index = 0;
        soft = [0.7, 0.15, 0.15];
        many = [1, 0, 1];
        weights = [1, 1, 1];
        weighted = false;
        weighing.firstChild.checked = false;
        for (const [name, { off }] of Object.entries(OPTIONS)) {
            options[name] = off;
            sliders[name].value = off;
        }
        build();
    }

    /** The options that count for this kind of target, without those that are off, by the names of the kernels. */
    function chosen() {
        const result = {};
        for (const [name, { off }] of Object.entries(OPTIONS)) {
            if (options[name] !== off && !sliders[name].input.disabled) result[name] = options[name];
        }
        if (weighted) result.weight = weights;
        return result;
    }

    /** Compute and show. */
    function update() {
        refuse();
        const { temperature, softcap, ...others } = chosen();
        const scale = { ...(temperature && { temperature }), ...(softcap && { softcap }) };
        const target = kind === "index" ? index : kind === "soft" ? soft : many;
        let probabilities;
        let result;
        if (kind === "many") {
            const { losses, gradient } = kernels.binaryCrossEntropy(logits, many, others);
            result = { loss: losses.reduce((sum, each) => sum + each, 0), gradient };
            probabilities = logits.map((logit) => kernels.softmax([logit, 0])[0]);
        } else {
            result = kernels.crossEntropy(logits, target, { ...scale, ...others });
            // There is no softmax with a softcap; that of log-probabilities is the probabilities themselves.
            const each = logits.map((_, c) => kernels.statistics(logits, c, scale).targetLogProbability);
            probabilities = kernels.softmax(each);
        }
        loss.show(result.loss);
        bits.show(result.loss / Math.LN2);

        const widest = Math.max(1, ...result.gradient.map(Math.abs));
        const smoothing = others.labelSmoothing ?? 0;
        const parts_of_target = kind === "many" ? 2 : classes;
        parts.forEach((part, c) => {
            const truth = kind === "index" ? Number(c === index) : target[c];
            part.node.classList.toggle("target", truth > 0);
            part.probability.show(probabilities[c], 0, probabilities[c]);
            part.tick.style.setProperty("--at", String((1 - smoothing) * truth + smoothing / parts_of_target));
            const half = result.gradient[c] / widest / 2;
            part.gradient.show(result.gradient[c], 0.5 + Math.min(half, 0), Math.abs(half));
            part.gradient.node.classList.toggle("up", result.gradient[c] < 0);
        });

        const about = kind === "many" ? undefined : kernels.statistics(logits, kind === "index" ? index : undefined, scale);
        const values = [
            kind === "index" ? probabilities[index] : undefined,
            about?.logsumexp,
            about?.entropy,
            kind === "index" ? about.targetRank : undefined,
        ];
        values.forEach((value, i) => {
            statistics[i].node.closest("div").hidden = value === undefined;
            if (value !== undefined) statistics[i].show(value, i === 3 ? String(value) : format(value));
        });
        said.textContent = sentence(result, probabilities);
        code.textContent = python();
        copied.textContent = "";
        keep();
        if (kind === "index" && shown) moved(probabilities[index]);
    }

    function sentence({ loss: value }, probabilities) {
        if (kind === "many") return "Each class is a question of its own, with a probability of its own; the losses are added up.";
        if (Object.keys(chosen()).some((name) => name !== "temperature" && name !== "softcap")) {
            return "With these options the loss is no longer −log of the target’s probability alone.";
        }
        if (kind === "soft") return "Even the best logits cannot bring this below the entropy of the target.";
        const chance = probabilities[index];
        if (chance > 0.5) return "The target has more than half of the probability: less than one bit.";
        const answers = `one of ${format(1 / chance, 1)} equally likely answers`;
        return `The target is as surprising as ${answers}: ${format(value / Math.LN2, 1)} bits.`;
    }

    /** Disable what the library refuses, and say why. */
    function refuse() {
        const binary = kind === "many" && "The binary loss has no such option.";
        for (const name of ["temperature", "softcap", "zLoss"]) sliders[name].refuse(binary);
        let why = "";
        if (kind === "soft") why = "The focal loss needs one class as target.";
        else if (kind === "index" && options.labelSmoothing > 0) why = "Not together with label smoothing.";
        sliders.focalGamma.refuse(why);
        const focal = kind === "index" && options.focalGamma > 0 && !options.labelSmoothing;
        sliders.labelSmoothing.refuse(focal && "Not together with the focal loss.");
    }

    /** The line of Python that computes the same. */
    function python() {
        const list = (values) => `[${values.map((value) => (Number.isInteger(value) ? `${value}.0` : value)).join(", ")}]`;
        const picked = Object.entries(chosen())
            .filter(([name]) => name !== "weight")
            .map(([name, value]) => `${OPTIONS[name].python}=${value}`);
        if (weighted) picked.push(`weight=${list(weights)}`);
        const z = list(logits);
        if (kind === "many") {
            return `xent_rs.binary_cross_entropy(${[z, `[${many.join(", ")}]`, ...picked, 'reduction="sum"'].join(", ")})`;
        }
        if (weighted) picked.push('reduction="sum"'); // a mean divides by the weight of the target
        const target = kind === "index" ? `[${index}]` : `[${list(soft)}]`;
        return `xent_rs.cross_entropy(${[`[${z}]`, target, ...picked].join(", ")})`;
    }

    async function copy() {
        try {
            await navigator.clipboard.writeText(code.textContent);
            copied.textContent = "Copied.";
        } catch {
            getSelection().selectAllChildren(code);
            copied.textContent = "Selected: copy it with your keys.";
        }
    }

    function keep() {
        state.keep("row.z", logits, START);
        state.keep("row.target", kind, "index");
        state.keep("row.y", index, 0);
        state.keep("row.t", kind === "soft" ? soft : "", "");
        state.keep("row.yes", kind === "many" ? many : "", "");
        state.keep("row.w", weighted ? weights : "", "");
        for (const [name, { off }] of Object.entries(OPTIONS)) state.keep(`row.${name}`, options[name], off);
    }
}

/** A horizontal bar with its number. */
function bar(kind, name) {
    const value = figure(name);
    const filled = element("i", { class: "filled" });
    const track = element("span", { class: "track", "aria-hidden": "true" }, filled);
    const node = element("div", { class: `bar ${kind}` }, element("span", { class: "caption" }, kind), track, value.node);
    return {
        node,
        track,
        show(number, from, width) {
            value.show(number, format(number, 3));
            filled.style.setProperty("--from", String(from));
            filled.style.setProperty("--width", String(width));
        },
    };
}
