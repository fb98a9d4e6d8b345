/** Elements and controls: what every panel is built of. */

const SVG = "http://www.w3.org/2000/svg";

/**
 * Create an element. Attributes that start with "on" are listeners; false and undefined ones are left out.
 * @param {string} tag
 * @param {Object<string, *>} attributes
 * @param {...(Node|string)} children
 * @returns {HTMLElement}
 */
export function element(tag, attributes = {}, ...children) {
    return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. @returns {SVGElement} */
export function svg(tag, attributes = {}, ...children) {
    return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
    for (const [name, value] of Object.entries(attributes)) {
        if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
        else if (value !== false && value !== undefined) node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children);
    return node;
}

/**
 * Write a number for people: four decimals, tiny ones with an exponent, with a true minus sign.
 * @param {number} value
 * @param {number} decimals
 */
export function format(value, decimals = 4) {
    if (Number.isNaN(value)) return "not a number";
    if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
    const tiny = value !== 0 && Math.abs(value) < 0.5 * 10 ** -decimals;
    const text = tiny ? value.toExponential(1) : value.toFixed(decimals);
    return text.replace(/^-(?=0\.?0*$)/, "").replaceAll("-", "−");
}

/**
 * A number that can be read from the page in full precision, too: `<data value="0.41702...">0.4170</data>`.
 * @param {string} name by which tests and scripts find it
 */
export function figure(name) {
    const node = element("data", { class: "figure", "data-name": name });
    return {
        node,
        show(value, text = format(value)) {
            node.value = String(value);
            node.textContent = text;
        },
    };
}

/**
 * A labelled native slider with its value beside it.
 * @param {Object} options
 * @param {string} options.name
 * @param {string|Node} options.label
 * @param {string} [options.hint] what it is for, below it
 * @param {(value: number) => string} [options.show] how the value reads
 * @param {(value: number) => void} options.change called while the reader moves it
 */
export function slider({ name, label, min, max, step, value, show = (x) => format(x, 2), change, className = "", hint = "" }) {
    const input = element("input", { type: "range", name, id: name, min, max, step });
    const output = element("output");
    const note = element("small", { class: "hint", id: `hint-${name}` }, hint);
    const title = element("label", { for: input.id }, label);
    const node = element("div", { class: `slider ${className}` }, title, input, output, note);
    const control = {
        node,
        input,
        get value() {
            return Number(input.value);
        },
        set value(number) {
            input.value = String(number);
            mark();
        },
        /** Disable it and say why, or, without a reason, enable it. */
        refuse(why) {
            input.disabled = Boolean(why);
            node.classList.toggle("refused", Boolean(why));
            note.textContent = why || hint;
        },
    };
    function mark() {
        output.textContent = show(control.value);
        input.setAttribute("aria-valuetext", output.textContent);
        input.style.setProperty("--share", String((control.value - min) / (max - min)));
    }
    input.addEventListener("input", () => {
        mark();
        change(control.value);
    });
    if (hint) input.setAttribute("aria-describedby", note.id);
    control.value = value;
    return control;
}

/** The sample of a line before its name; its colour and dashes are those of the class around it. */
export function swatch() {
    return element("i", { class: "swatch" });
}

/** The head of a table. */
export function heading(...names) {
    const cells = names.map((name) => element("th", { scope: "col" }, name));
    return element("thead", {}, element("tr", {}, ...cells));
}

/** A button. */
export function button(label, click, attributes = {}) {
    return element("button", { type: "button", onclick: click, ...attributes }, label);
}

/**
 * A group of radio buttons that look like one control.
 * @param {string} name
 * @param {string} legend
 * @param {Array<[string, string]>} choices value and label of each
 * @param {string} chosen
 * @param {(value: string) => void} change
 */
export function choice(name, legend, choices, chosen, change) {
    return element(
        "fieldset",
        { class: "choice" },
        element("legend", {}, legend),
        ...choices.map(([value, label]) =>
            element(
                "label",
                {},
                element("input", { type: "radio", name, value, checked: value === chosen, onchange: () => change(value) }),
                element("span", {}, label),
            ),
        ),
    );
}

/** A checkbox with its label. */
export function checkbox(name, label, checked, change) {
    const input = element("input", { type: "checkbox", name, checked, onchange: () => change(input.checked) });
    return element("label", { class: "checkbox" }, input, element("span", {}, label));
}

/** Whether the reader wants little to move. */
export function calm() {
    return matchMedia("(prefers-reduced-motion: reduce)").matches;
}

/**
 * Repeat a step for every picture that the screen shows, until it returns false or is stopped.
 * @param {(milliseconds: number) => boolean} step what to do, given the time since the last one
 * @param {(playing: boolean) => void} changed told when it starts and ends
 */
export function player(step, changed) {
    let request = 0;
    let last = 0;
    function frame(now) {
        const passed = Math.min(now - last, 100); // a tab that comes back does not leap
        last = now;
        request = step(passed) ? requestAnimationFrame(frame) : 0;
        if (!request) changed(false);
    }
    return {
        get playing() {
            return request !== 0;
        },
        start() {
            if (request) return;
            last = performance.now();
            request = requestAnimationFrame(frame);
            changed(true);
        },
        stop() {
            if (!request) return;
            cancelAnimationFrame(request);
            request = 0;
            changed(false);
        },
    };
}
