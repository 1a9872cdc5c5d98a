// SPDX-License-Identifier: GPL-2.0-or-later
/** @file Draws what a design holds: trees as SVG, where Python placed them, and lists as text. */

import { h, oneStop, setChildren, svg } from "./draw.js";
import { drawings } from "./film.js";
import { grouped } from "./words.js";

/** @typedef {import("./film.js").DesignLine} DesignLine */
/** @typedef {import("./film.js").Part} Part */
/** @typedef {import("./film.js").State} State */

const LETTER = 6.3; // width of a letter of the small fixed-width type
const LINE = 14;
const LISTS = ["chains", "lists", "odd", "records", "roots", "shifts"];

/** One design's panel, each drawing of which is made again only where something in it changed. */
export class Structures {
  /**
   * @param {HTMLElement} place
   * @param {number} slot
   * @param {DesignLine} design
   */
  constructor(place, slot, design) {
    this.place = place;
    this.slot = slot;
    this.design = design;
    this.holding = h("p", { class: "holding" });
    this.figures = h("div", { class: "figures" });
    place.append(this.holding, this.figures);
    /** @type {Map<string, {parts: unknown[], element: HTMLElement}>} */
    this.drawn = new Map();
  }

  /** @param {State} state */
  draw(state) {
    const holding = state.get(`${this.slot}/`);
    const objects = holding !== undefined && holding.is === "holding" ? holding.objects : [];
    const held = objects.filter(([, count]) => count > 0);
    this.holding.textContent =
      held.length === 0
        ? "holds nothing"
        : `holds ${held.map(([name, count, bytes]) => `${grouped(count)} ${name} (${grouped(bytes)} B)`).join(", ")}`;
    const kept = new Map();
    const elements = [];
    for (const drawing of drawings(state, this.slot, this.design)) {
      const parts = drawing.parts.map(([, part]) => part);
      let figure = this.drawn.get(drawing.id);
      if (figure === undefined || figure.parts.length !== parts.length || figure.parts.some((part, i) => part !== parts[i])) {
        const about = this.design.about[drawing.sort] ?? "";
        figure = { parts, element: drawFigure(drawing, about) };
      }
      kept.set(drawing.id, figure);
      elements.push(figure.element);
    }
    this.drawn = kept;
    setChildren(this.figures, elements);
  }
}

/**
 * @param {{id: string, sort: string, title: string, parts: [string, Part][]}} drawing
 * @param {string} about
 */
function drawFigure(drawing, about) {
  const caption = h("figcaption", {}, drawing.title);
  if (about !== "") {
    const said = h("p", { class: "about", hidden: true }, about);
    const button = h(
      "button",
      {
        type: "button",
        class: "help",
        "aria-label": `What does “${drawing.title}” show?`,
        "aria-expanded": "false",
        click: () => {
          said.hidden = !said.hidden;
          button.setAttribute("aria-expanded", String(!said.hidden));
        },
      },
      "?",
    );
    caption.append(" ", button, said);
  }
  const picture = LISTS.includes(drawing.sort) ? drawList(drawing.parts, drawing.title) : drawTree(drawing.parts, drawing.title);
  return h("figure", { class: LISTS.includes(drawing.sort) ? "list" : "tree" }, caption, picture);
}

/**
 * @param {Part} part
 * @returns {string[]}
 */
function lines(part) {
  return part.facts.map(([name, value]) => `${name} ${value}`);
}

/**
 * @param {string} key
 * @param {Part} part
 * @returns {import("./draw.js").Attributes}
 */
function common(key, part) {
  return {
    class: part.count > 1 ? "part many" : "part",
    "data-key": key,
    tabindex: "-1",
    role: "img",
    "aria-label": [`${part.kind} ${part.label}`, ...lines(part)].join(", "),
  };
}

/**
 * @param {[string, Part][]} parts
 * @param {string} title
 */
function drawList(parts, title) {
  const list = h("div", { class: "parts", role: "group", "aria-label": `${title}; ↑ and ↓ move` });
  for (const [key, part] of parts) {
    list.append(h("div", common(key, part), h("b", {}, part.label), ` ${lines(part).join(", ")}`));
  }
  oneStop(list, ".part");
  return list;
}

/**
 * @param {[string, Part][]} parts
 * @param {string} title
 */
function drawTree(parts, title) {
  const longest = Math.max(...parts.flatMap(([, part]) => [part.label.length + 3, ...lines(part).map((line) => line.length)]));
  const facts = Math.max(...parts.map(([, part]) => part.facts.length));
  const width = Math.max(44, longest * LETTER + 14);
  const height = (facts + 1) * LINE + 10;
  const unit = { x: width + 14, y: height + 26 };
  const right = Math.max(...parts.map(([, part]) => part.x)) * unit.x + width + 4;
  const bottom = Math.max(...parts.map(([, part]) => part.y)) * unit.y + height + 4;
  const picture = svg("svg", { width: right, height: bottom, viewBox: `0 0 ${right} ${bottom}`, role: "group", "aria-label": `${title}; ↑ and ↓ move` });
  const places = new Map(parts);
  for (const [, part] of parts) {
    const above = places.get(part.above);
    if (above === undefined) continue;
    const from = { x: above.x * unit.x + width / 2 + 2, y: above.y * unit.y + height + 2 };
    const to = { x: part.x * unit.x + width / 2 + 2, y: part.y * unit.y + 2 };
    picture.append(svg("path", { class: "edge", d: `M${from.x} ${from.y}C${from.x} ${from.y + 14} ${to.x} ${to.y - 14} ${to.x} ${to.y}` }));
  }
  for (const [key, part] of parts) {
    const node = svg("g", { ...common(key, part), transform: `translate(${part.x * unit.x + 2} ${part.y * unit.y + 2})` });
    node.append(svg("rect", { width, height, rx: 6 }));
    node.append(svg("text", { class: "label", x: 8, y: LINE + 1 }, part.label));
    lines(part).forEach((line, i) => node.append(svg("text", { x: 8, y: (i + 2) * LINE + 1 }, line)));
    picture.append(node);
  }
  oneStop(picture, "g");
  return h("div", { class: "scroll" }, picture);
}
