/** Charts in SVG, drawn anew at every change, in the pixels of the page: text keeps its size on a phone. */

import { format, svg } from "./dom.js";

const MARGIN = { top: 14, right: 14, bottom: 40, left: 46 };

/**
 * @typedef {Object} Axis
 * @property {[number, number]} domain
 * @property {string} label
 * @property {number[]} ticks
 * @property {(value: number) => string} [show] how a tick reads
 */

export class Chart {
    #paint = () => {};
    #width = 0;

    /**
     * @param {Element} parent
     * @param {Object} options
     * @param {Axis} options.x
     * @param {Axis} options.y
     * @param {number} [options.height] in pixels; without it the drawing area is square
     * @param {string} options.name by which style and tests find it
     */
    constructor(parent, { x, y, height, name }) {
        Object.assign(this, { x, y, height });
        this.node = svg("svg", { class: "chart", role: "img", "data-name": name });
        parent.append(this.node);
        new ResizeObserver(() => {
            if (this.node.clientWidth !== this.#width) this.#draw();
        }).observe(this.node);
    }

    /** Say what the picture shows, to those who do not see it. */
    describe(text) {
        this.node.setAttribute("aria-label", text);
    }

    /** Draw with a function, now and whenever the width changes. */
    paint(draw) {
        this.#paint = draw;
        this.#draw();
    }

    #draw() {
        this.#width = this.node.clientWidth;
        if (!this.#width) return;
        const inner = this.#width - MARGIN.left - MARGIN.right;
        this.right = MARGIN.left + inner;
        this.bottom = this.height ? this.height - MARGIN.bottom : MARGIN.top + inner;
        const height = this.bottom + MARGIN.bottom;
        this.node.setAttribute("viewBox", `0 0 ${this.#width} ${height}`);
        this.node.style.height = `${height}px`;
        this.node.replaceChildren();
        this.#paint(this);
    }

    /** Horizontal and vertical place of a value. */
    px(value) {
        const [low, high] = this.x.domain;
        return MARGIN.left + ((value - low) / (high - low)) * (this.right - MARGIN.left);
    }

    py(value) {
        const [low, high] = this.y.domain;
        return this.bottom - ((value - low) / (high - low)) * (this.bottom - MARGIN.top);
    }

    /** The values at a place of the pointer, kept inside the axes. */
    at(event) {
        const box = this.node.getBoundingClientRect();
        const clamp = (value, [low, high]) => Math.min(Math.max(value, low), high);
        const [left, right] = this.x.domain;
        const [low, high] = this.y.domain;
        const x = (event.clientX - box.left - MARGIN.left) / (this.right - MARGIN.left);
        const y = (this.bottom - (event.clientY - box.top)) / (this.bottom - MARGIN.top);
        return [clamp(left + x * (right - left), this.x.domain), clamp(low + y * (high - low), this.y.domain)];
    }

    add(tag, attributes, ...children) {
        const node = svg(tag, attributes, ...children);
        this.node.append(node);
        return node;
    }

    axes() {
        const show = (axis, value) => (axis.show ?? ((x) => format(x, 0)))(value);
        for (const tick of this.x.ticks) {
            const at = this.px(tick);
            this.add("line", { class: "grid", x1: at, x2: at, y1: MARGIN.top, y2: this.bottom });
            this.text(at, this.bottom + 15, show(this.x, tick), "tick", "middle");
        }
        for (const tick of this.y.ticks) {
            const at = this.py(tick);
            this.add("line", { class: "grid", x1: MARGIN.left, x2: this.right, y1: at, y2: at });
            this.text(MARGIN.left - 7, at + 4, show(this.y, tick), "tick", "end");
        }
        this.text((MARGIN.left + this.right) / 2, this.bottom + 33, this.x.label, "axis", "middle");
        const middle = (MARGIN.top + this.bottom) / 2;
        this.text(12, middle, this.y.label, "axis", "middle").setAttribute("transform", `rotate(-90 12 ${middle})`);
    }

    text(x, y, string, className, anchor = "start") {
        return this.add("text", { x, y, class: className, "text-anchor": anchor }, string);
    }

    /** A line through values; what lies outside of the axes is cut off. */
    line(points, className) {
        const shown = points.map(([x, y]) => `${round(this.px(x))} ${round(this.py(y))}`);
        if (!shown.length) return;
        this.add("path", { class: `line ${className}`, d: `M${shown.join("L")}`, "clip-path": `url(#${this.#clip()})` });
    }

    dot(x, y, className, radius = 6) {
        return this.add("circle", { class: `dot ${className}`, cx: this.px(x), cy: this.py(y), r: radius });
    }

    /** Closed outlines, in values, as one area with holes. */
    area(rings, className) {
        const path = rings.map((ring) => `M${ring.map(([x, y]) => `${round(this.px(x))} ${round(this.py(y))}`).join("L")}Z`);
        this.add("path", { class: className, d: path.join(""), "fill-rule": "evenodd" });
    }

    #clip() {
        const id = `clip-${this.node.dataset.name}`;
        if (!this.node.querySelector(`#${id}`)) {
            const box = { x: MARGIN.left, y: MARGIN.top, width: this.right - MARGIN.left, height: this.bottom - MARGIN.top };
            this.add("clipPath", { id }, svg("rect", box));
        }
        return id;
    }
}

/**
 * The outlines of the region where a field on a grid is at least a level (marching squares).
 *
 * Outside of the grid the field counts as lower than any level, which closes every outline along the rim.
 * @param {number[][]} field rows from low to high y
 * @param {number} level
 * @param {number[]} xs where the columns are
 * @param {number[]} ys where the rows are
 * @returns {Array<Array<[number, number]>>}
 */
export function outlines(field, level, xs, ys) {
    const [rows, columns] = [ys.length, xs.length];
    const inside = (row, column) => Number(field[row]?.[column] >= level); // false of undefined, too
    // An edge joins two neighbours of the grid, one of them inside; its number is that of its lower left end, twice,
    // and one more if it goes upwards. Each outline is a chain of edges.
    const number = (row, column, upwards) => 2 * ((row + 1) * (columns + 2) + column + 1) + upwards;
    const next = new Map();
    const join = (row, column, from, to) => {
        const edges = [
            [row, column, 0],
            [row, column + 1, 1],
            [row + 1, column, 0],
            [row, column, 1],
        ];
        next.set(number(...edges[from]), { to: number(...edges[to]), point: crossing(field, level, xs, ys, edges[from]) });
    };
    for (let row = -1; row < rows; row += 1) {
        let [lowLeft, highLeft] = [0, 0];
        for (let column = -1; column < columns; column += 1) {
            const [lowRight, highRight] = [inside(row, column + 1), inside(row + 1, column + 1)];
            const corners = [lowLeft, lowRight, highRight, highLeft]; // counter-clockwise; side i is from corner i to the next
            const sum = lowLeft + lowRight + highRight + highLeft;
            for (let start = 0; sum > 0 && sum < 4 && start < 4; start += 1) {
                if (corners[start] || !corners[(start + 1) % 4]) continue;
                // From this side on corners are inside, until another side leads out again.
                let end = (start + 1) % 4;
                while (corners[(end + 1) % 4]) end = (end + 1) % 4;
                join(row, column, end, start);
            }
            [lowLeft, highLeft] = [lowRight, highRight];
        }
    }
    const rings = [];
    while (next.size) {
        const ring = [];
        let [at] = next.keys();
        while (next.has(at)) {
            const { to, point } = next.get(at);
            ring.push(point);
            next.delete(at);
            at = to;
        }
        rings.push(ring);
    }
    return rings;
}

/** Where the field crosses the level on an edge, taken as linear; on an edge that leaves the grid, its end inside. */
function crossing(field, level, xs, ys, [row, column, upwards]) {
    const [toRow, toColumn] = [row + upwards, column + 1 - upwards];
    const [from, to] = [field[row]?.[column], field[toRow]?.[toColumn]];
    if (from === undefined) return [xs[toColumn], ys[toRow]];
    if (to === undefined) return [xs[column], ys[row]];
    const share = (level - from) / (to - from);
    const mix = (a, b) => a + (Number.isFinite(share) ? share : 0.5) * (b - a);
    return [mix(xs[column], xs[toColumn]), mix(ys[row], ys[toRow])];
}

function round(value) {
    return Math.round(value * 10) / 10;
}
