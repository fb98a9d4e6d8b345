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

function round(value) {
    return Math.round(value * 10) / 10;
}

/**
 * The outlines of the region where a field on a grid is at least a level (marching squares).
 * The field is taken as lower than any level outside of the grid, which closes every outline.
 * @param {number[][]} field rows from low to high y
 * @param {number} level
 * @param {number[]} xs where the columns are
 * @param {number[]} ys where the rows are
 * @returns {Array<Array<[number, number]>>}
 */
export function outlines(field, level, xs, ys) {
    const rows = field.length;
    const columns = field[0].length;
    const inside = (row, column) =>
        row >= 0 && column >= 0 && row < rows && column < columns && field[row][column] >= level;
    // An edge joins two neighbours of which one is inside; it is named after its lower left end and its direction.
    const crossing = (row, column, vertical) => {
        const [toRow, toColumn] = vertical ? [row + 1, column] : [row, column + 1];
        const clampedRow = (r) => ys[Math.min(Math.max(r, 0), rows - 1)];
        const clampedColumn = (c) => xs[Math.min(Math.max(c, 0), columns - 1)];
        const from = field[row]?.[column];
        const to = field[toRow]?.[toColumn];
        let share = from === undefined ? 1 : 0; // outside of the grid the outline runs along its rim
        if (from !== undefined && to !== undefined) share = (level - from) / (to - from);
        if (!Number.isFinite(share)) share = 0.5;
        const mix = (a, b) => a + share * (b - a);
        return [mix(clampedColumn(column), clampedColumn(toColumn)), mix(clampedRow(row), clampedRow(toRow))];
    };
    const next = new Map();
    const name = (row, column, vertical) => ((row + 1) * (columns + 2) + column + 1) * 2 + (vertical ? 1 : 0);
    const points = new Map();
    for (let row = -1; row < rows; row += 1) {
        for (let column = -1; column < columns; column += 1) {
            const corners = [inside(row, column), inside(row, column + 1), inside(row + 1, column + 1), inside(row + 1, column)];
            const edges = [[row, column, false], [row, column + 1, true], [row + 1, column, false], [row, column, true]];
            // Walk with the inside to the left: enter where it begins, counter-clockwise, and leave where it ends.
            for (let start = 0; start < 4; start += 1) {
                if (corners[start] || !corners[(start + 1) % 4]) continue;
                let end = (start + 1) % 4;
                while (corners[(end + 1) % 4]) end = (end + 1) % 4;
                const from = name(...edges[end]);
                next.set(from, name(...edges[start]));
                points.set(from, crossing(...edges[end]));
            }
        }
    }
    const rings = [];
    while (next.size) {
        const ring = [];
        let [at] = next.keys();
        while (next.has(at)) {
            ring.push(points.get(at));
            const to = next.get(at);
            next.delete(at);
            at = to;
        }
        rings.push(ring);
    }
    return rings;
}
