// Draws the recorded benchmarks, of which the page has the numbers: bars for each shape, or lines over the number of
// classes. Without this script the page shows a table instead.
"use strict";

(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const UNITS = { ms: "milliseconds", ns: "nanoseconds an element", MiB: "MiB above the inputs" };

  const element = (name, attributes = {}, ...children) => {
    const made = document.createElement(name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    made.append(...children);
    return made;
  };
  const shape = (name, attributes = {}, text = "") => {
    const made = document.createElementNS(SVG, name);
    Object.entries(attributes).forEach(([key, value]) => made.setAttribute(key, value));
    if (text) made.textContent = text;
    return made;
  };
  const is_ours = (name, suite) =>
    name.startsWith("xent_rs") || ["options", "threads", "beside"].includes(suite.key);
  const number = (value) =>
    Math.abs(value) >= 1000 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(3)));
  const unique = (values) => [...new Set(values)];

  // What one value says, in a sentence: on hover, on focus, and for who cannot see the picture.
  const sentence = (name, value, of, suite) => {
    // Compared with the first, and of frameworks' losses with the framework's own.
    const other = of.own ? of.own[name] : Object.keys(of.values)[0];
    const parts = [`${name}, ${of.shape}: ${number(value)} ${suite.unit === "ns" ? "ns an element" : suite.unit}`];
    if (other && other !== name && of.values[other] > 0 && value > 0) {
      const times = value / of.values[other];
      parts.push(times >= 1 ? `${number(times)} times as long as ${other}` : `${number(1 / times)} times as fast as ${other}`);
    }
    if (of.roof && value > 0) parts.push(`${number((100 * of.roof) / value)} % of the roof`);
    return `${suite.unit === "MiB" ? parts[0] : parts.join("; ")}.`;
  };

  // Bars for each shape: the name beside each or, where there is little room, above it.
  const bars = (cases, suite, say, width) => {
    const long = cases.some((of) => Object.keys(of.values).some((name) => name.length > 28));
    const narrow = width < 560 || long;
    const [label, right, line] = narrow ? [0, 60, 40] : [200, 70, 22];
    const svg = shape("svg", { role: "group" });
    let y = 0;
    for (const of of cases) {
      const entries = Object.entries(of.values);
      const most = Math.max(...entries.map(([, value]) => value), of.roof ?? 0, 1e-12);
      const at = (value) => label + ((width - label - right) * Math.max(value, 0)) / most;
      const title = shape("text", { x: label, y: y + 16, "font-weight": "bold" }, of.shape);
      svg.append(title);
      const top = y + 26;
      entries.forEach(([name, value], index) => {
        const middle = top + index * line + (narrow ? 28 : line / 2);
        const kind = is_ours(name, suite) ? "ours" : "others";
        const group = shape("g", { tabindex: 0, role: "img", "aria-label": sentence(name, value, of, suite) });
        group.append(
          shape("rect", { x: 0, y: top + index * line, width, height: line, fill: "transparent" }),
          shape("text", narrow ? { x: 0, y: middle - 12 } : { x: label - 8, y: middle + 4, "text-anchor": "end" }, name),
          shape("rect", { x: label, y: middle - 7, width: Math.max(at(value) - label, 1), height: 14, class: kind }),
          shape("text", { x: at(value) + 6, y: middle + 4 }, number(value)),
        );
        if (of.roof) group.append(shape("line", { x1: at(of.roof), x2: at(of.roof), y1: middle - 10, y2: middle + 10, class: "roof" }));
        say(group);
        svg.append(group);
      });
      if (of.roof) title.textContent = `${of.shape}; the roof, dashed: ${number(of.roof)}`;
      y = top + entries.length * line + 20;
    }
    svg.setAttribute("viewBox", `0 0 ${width} ${Math.max(y - 10, 10)}`);
    return svg;
  };

  // Lines over the number of classes, both axes logarithmic: the names at their ends or, where there is little room, below.
  const lines = (cases, suite, say, width) => {
    const names = unique(cases.flatMap((of) => Object.keys(of.values)));
    const narrow = width < 560;
    const [left, right, top, bottom] = [44, narrow ? 8 : 190, 12, narrow ? 52 + 18 * (names.length + 1) : 44];
    const height = narrow ? 300 + bottom : 400;
    const floor = height - bottom;
    const svg = shape("svg", { role: "group", viewBox: `0 0 ${width} ${height}` });
    const all = cases.flatMap((of) => [...Object.values(of.values), of.roof].filter((value) => value > 0));
    const [low, high] = [Math.log10(Math.min(...all)) - 0.05, Math.log10(Math.max(...all)) + 0.05];
    const counts = cases.map((of) => Math.log10(of.classes));
    const [least, most] = [Math.min(...counts), Math.max(...counts)];
    const x = (classes) => left + ((width - left - right) * (Math.log10(classes) - least)) / (most - least || 1);
    const y = (value) => floor - ((floor - top) * (Math.log10(value) - low)) / (high - low || 1);
    const path = (points) => points.map(([a, b], index) => `${index ? "L" : "M"}${a.toFixed(1)} ${b.toFixed(1)}`).join("");
    for (let power = Math.floor(low); power <= high; power += 1) {
      for (const digit of [1, 2, 5]) {
        const value = digit * 10 ** power;
        if (Math.log10(value) < low || Math.log10(value) > high) continue;
        svg.append(
          shape("line", { x1: left, x2: width - right, y1: y(value), y2: y(value), class: "grid" }),
          shape("text", { x: left - 6, y: y(value) + 4, "text-anchor": "end", class: "muted" }, number(value)),
        );
      }
    }
    let last = -Infinity;
    for (const classes of unique(cases.map((of) => of.classes))) {
      if (x(classes) - last < (narrow ? 80 : 56)) continue;
      last = x(classes);
      svg.append(shape("text", { x: last, y: floor + 18, "text-anchor": narrow && last > width - 40 ? "end" : "middle", class: "muted" }, classes.toLocaleString("en")));
    }
    svg.append(shape("text", { x: (left + width - right) / 2, y: floor + 38, "text-anchor": "middle", class: "muted" }, "number of classes"));
    const ends = [];
    const roofs = cases.filter((of) => of.roof);
    if (roofs.length) {
      svg.append(shape("path", { d: path(roofs.map((of) => [x(of.classes), y(of.roof)])), class: "roof", fill: "none" }));
      ends.push({ name: "the roof, dashed", y: y(roofs.at(-1).roof), group: null, kind: "muted" });
    }
    const peers = names.filter((name) => !is_ours(name, suite));
    const ours = names.filter((name) => is_ours(name, suite));
    for (const name of [...names].reverse()) {
      const kind = is_ours(name, suite) ? "ours" : `peer-${peers.indexOf(name) % 6}`;
      const group = shape("g", { class: kind });
      const points = cases.filter((of) => of.values[name] > 0);
      const dashes = ours.indexOf(name) > 0 ? { "stroke-dasharray": "7 4" } : {};
      group.append(shape("path", { d: path(points.map((of) => [x(of.classes), y(of.values[name])])), ...dashes }));
      for (const of of points) {
        const dot = shape("circle", {
          cx: x(of.classes), cy: y(of.values[name]), r: 4,
          tabindex: 0, role: "img", "aria-label": sentence(name, of.values[name], of, suite),
        });
        say(dot, group);
        group.append(dot);
      }
      svg.append(group);
      ends.push({ name, y: y(points.at(-1).values[name]), group, kind });
    }
    if (narrow) {
      ends.reverse().forEach((end, index) => { end.y = floor + 60 + 18 * index; });
    } else {
      // Names that would lie on each other are moved apart.
      ends.sort((a, b) => a.y - b.y);
      ends.forEach((end, index) => { end.y = Math.max(end.y, index ? ends[index - 1].y + 16 : top + 6); });
      ends.forEach((end, index) => { end.y = Math.min(end.y, floor - 16 * (ends.length - 1 - index)); });
    }
    for (const end of ends) {
      const text = shape("text", { x: narrow ? left : width - right + 10, y: end.y + 4, class: `name ${end.kind}` }, end.name);
      if (end.group) {
        text.addEventListener("pointerenter", () => svg.querySelectorAll(":scope > g").forEach((group) => group.classList.toggle("dimmed", group !== end.group)));
        text.addEventListener("pointerleave", () => svg.querySelectorAll(".dimmed").forEach((group) => group.classList.remove("dimmed")));
      }
      svg.append(text);
    }
    return svg;
  };

  const table = (cases, suite) => {
    const names = unique(cases.flatMap((of) => Object.keys(of.values)));
    const cell = (value) => element("td", {}, value === undefined || value === null ? "" : number(value));
    const body = element("tbody");
    for (const name of names) {
      body.append(element("tr", {}, element("th", { scope: "row" }, name), ...cases.map((of) => cell(of.values[name]))));
    }
    if (cases.some((of) => of.roof)) {
      body.append(element("tr", {}, element("th", { scope: "row" }, "the roof"), ...cases.map((of) => cell(of.roof))));
    }
    const head = element("tr", {}, element("th", { scope: "col" }), ...cases.map((of) => element("th", { scope: "col" }, of.shape)));
    return element("div", { class: "pst-scrollable-table-container" },
      element("table", { class: "table" }, element("caption", {}, UNITS[suite.unit]), element("thead", {}, head), body));
  };

  const start = (root) => {
    const records = JSON.parse(root.querySelector(".records-data").textContent);
    const controls = element("div", { class: "records-controls" });
    const picture = element("div", { class: "records-picture" });
    const said = element("p", { class: "records-said", "aria-live": "polite" });
    const provenance = element("p", { class: "records-provenance" });
    const numbers = element("details", {}, element("summary", {}, "The same as a table"));
    const hint = "Point at a bar or a dot, or go there with the tab key, to read what it says.";

    const choice = (title) => {
      const select = element("select");
      controls.append(element("label", {}, title, select));
      return select;
    };
    const [record, suite, group] = [choice("Record"), choice("Experiment"), choice("What")];
    const shapes = element("fieldset", {}, element("legend", {}, "Shapes, rows x classes"));
    controls.append(shapes);
    const fill = (select, labels) => {
      const before = select.value;
      select.replaceChildren(...labels.map((label) => element("option", { value: label }, label)));
      if (labels.includes(before)) select.value = before;
    };
    const chosen = () => {
      const of_record = records.find((each) => each.label === record.value);
      const of_suite = of_record.suites.find((each) => each.name === suite.value);
      return [of_record, of_suite, of_suite.groups.find((each) => each.label === group.value)];
    };
    const say = (mark, whole) => {
      const tell = () => {
        said.textContent = mark.getAttribute("aria-label");
        if (whole) whole.parentNode.querySelectorAll(":scope > g").forEach((each) => each.classList.toggle("dimmed", each !== whole));
      };
      const stop = () => {
        said.textContent = hint;
        picture.querySelectorAll(".dimmed").forEach((each) => each.classList.remove("dimmed"));
      };
      mark.addEventListener("pointerenter", tell);
      mark.addEventListener("pointerleave", stop);
      mark.addEventListener("focus", tell);
      mark.addEventListener("blur", stop);
    };
    const draw = () => {
      const [of_record, of_suite, of_group] = chosen();
      const ticked = [...shapes.querySelectorAll("input:checked")].map((input) => input.value);
      const cases = of_group.cases.filter((of) => ticked.includes(of.shape));
      said.textContent = cases.length ? hint : "No shape is ticked.";
      provenance.textContent = of_record.provenance;
      const drawn = cases.length ? [(of_suite.unit === "ns" ? lines : bars)(cases, of_suite, say, Math.max(picture.clientWidth, 280))] : [];
      drawn.forEach((svg) => svg.setAttribute("aria-label", `${of_suite.name}: ${of_group.label}, ${UNITS[of_suite.unit]}`));
      picture.replaceChildren(element("p", { class: "records-title" }, `${of_group.label}, ${UNITS[of_suite.unit]}; less is better`), ...drawn);
      numbers.replaceChildren(numbers.firstChild, ...(cases.length ? [table(cases, of_suite)] : []));
    };
    const offer = () => {
      const of_record = records.find((each) => each.label === record.value);
      fill(suite, of_record.suites.map((each) => each.name));
      const of_suite = of_record.suites.find((each) => each.name === suite.value);
      fill(group, of_suite.groups.map((each) => each.label));
      const [, , of_group] = chosen();
      shapes.hidden = of_suite.unit === "ns" || of_group.cases.length === 1;
      shapes.replaceChildren(shapes.firstChild, ...of_group.cases.map((of, index) => {
        const input = element("input", { type: "checkbox", value: of.shape });
        input.checked = of_suite.unit === "ns" || index < 2;
        input.addEventListener("change", draw);
        return element("label", {}, input, of.shape);
      }));
      draw();
    };
    fill(record, records.map((each) => each.label));
    [record, suite, group].forEach((select) => select.addEventListener("change", offer));
    root.querySelector(".records-fallback").replaceWith(controls, picture, said, numbers, provenance);
    offer();
    let width = picture.clientWidth;
    new ResizeObserver(() => {
      if (picture.clientWidth === width) return;
      width = picture.clientWidth;
      draw();
    }).observe(picture);
  };

  document.querySelectorAll(".records").forEach(start);
})();
