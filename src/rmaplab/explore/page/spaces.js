// SPDX-License-Identifier: GPL-2.0-or-later
/** @file Draws processes with their address spaces: VMAs as boxes in order of address, pages as cells. */

import { h, oneStop } from "./draw.js";
import { allCells, areaOf, every, folioOf } from "./film.js";
import { areaLine, face, faceInWords, grouped, offsetLine, plural } from "./words.js";

/** @typedef {import("./film.js").Area} Area */
/** @typedef {import("./film.js").Cell} Cell */
/** @typedef {import("./film.js").State} State */
/** @typedef {import("./film.js").AnyPart} AnyPart */
/**
 * @typedef {{
 *   ask: (key: string) => void,
 *   hint: (key: string, extra?: string) => void,
 *   news: Map<string, string>,
 * }} Context what cells and boxes do, and what a step did to which part
 * @typedef {{page: number, count: number, element: HTMLElement}} DrawnCell
 */

/** Address spaces, drawn again only where something changed. */
export class Spaces {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
    /** @type {Map<string, {parts: unknown[], element: HTMLElement, cells: Map<number, DrawnCell[]>}>} */
    this.drawn = new Map();
  }

  /**
   * @param {State} state
   * @param {Context} context
   */
  draw(state, context) {
    const elements = [];
    const kept = new Map();
    const spaces = every(state, "space").sort((a, b) => a.pids[0] - b.pids[0]);
    for (const space of spaces) {
      const key = `m${space.id}`;
      const parts = dependencies(state, space, context);
      let column = this.drawn.get(key);
      if (column === undefined || !alike(column.parts, parts)) column = { parts, ...drawSpace(state, space, context) };
      kept.set(key, column);
      elements.push(column.element);
    }
    for (const folded of every(state, "folded")) {
      const of = folded.parent === 0 ? "without a parent here" : `of process ${folded.parent}`;
      const words = `${grouped(folded.processes)} more ${folded.processes === 1 ? "process" : "processes"} ${of}: ${plural(folded.areas, "VMA")}, ${plural(folded.pages, "page")}`;
      elements.push(h("section", { class: "space folded" }, words));
    }
    this.drawn = kept;
    this.place.replaceChildren(...elements);
  }

  /**
   * The drawn cells of a VMA.
   * @param {number} id
   */
  cells(id) {
    for (const column of this.drawn.values()) {
      const cells = column.cells.get(id);
      if (cells !== undefined) return cells;
    }
    return [];
  }
}

/**
 * @param {unknown[]} a
 * @param {unknown[]} b
 */
function alike(a, b) {
  return a.length === b.length && a.every((part, i) => part === b[i]);
}

/**
 * Everything that a column's picture depends on.
 * @param {State} state
 * @param {import("./film.js").Space} space
 * @param {Context} context
 */
function dependencies(state, space, context) {
  /** @type {unknown[]} */
  const parts = [space, ...space.pids.map((pid) => state.get(`p${pid}`))];
  for (const id of space.areas) {
    if (id < 0) continue;
    const area = areaOf(state, id);
    parts.push(area, context.news.get(`V${id}`));
    for (const cell of area?.cells ?? []) if (cell[4]) parts.push(folioOf(state, cell[4]), context.news.get(`f${cell[4]}`) === "born");
  }
  return parts;
}

/**
 * @param {State} state
 * @param {import("./film.js").Space} space
 * @param {Context} context
 */
function drawSpace(state, space, context) {
  /** @type {Map<number, DrawnCell[]>} */
  const cells = new Map();
  const element = h("section", { class: "space", "data-key": `m${space.id}` });
  const title = h("h3", {}, space.pids.length === 1 ? `Process ${space.pids[0]}` : `Processes ${space.pids.join(", ")}`);
  const process = state.get(`p${space.pids[0]}`);
  if (process !== undefined && process.is === "process") {
    if (process.name !== "") title.append(" ", h("span", { class: "name" }, process.name));
    if (process.parent !== 0) title.append(" ", h("span", { class: "quiet" }, `child of ${process.parent}`));
  }
  element.append(title);
  for (const id of space.areas) {
    const area = id < 0 ? undefined : areaOf(state, id);
    if (area === undefined) {
      element.append(h("p", { class: "folded" }, `${grouped(-id)} more ${id === -1 ? "VMA" : "VMAs"}`));
      continue;
    }
    if (area.apart.length > 0) element.append(drawApart(area));
    const drawn = drawArea(state, area, context);
    element.append(drawn.element);
    cells.set(area.id, drawn.cells);
  }
  return { element, cells };
}

/** @param {Area} area */
function drawApart(area) {
  return h(
    "details",
    { class: "apart" },
    h("summary", {}, "Why did these not merge?"),
    h("ul", {}, ...area.apart.map((reason) => h("li", {}, reason))),
  );
}

/**
 * @param {State} state
 * @param {Area} area
 * @param {Context} context
 */
function drawArea(state, area, context) {
  const key = `V${area.id}`;
  const news = context.news.get(key);
  const odd = offsetLine(area);
  const line = areaLine(area);
  const space = line.indexOf(" ");
  const element = h(
    "article",
    {
      class: `area${area.prepared ? "" : " unprepared"}${news === undefined ? "" : ` ${news}`}`,
      "data-key": key,
      mouseenter: () => context.hint(key),
      focusin: () => context.hint(key),
    },
    h("h4", {}, h("b", {}, line.slice(0, space)), line.slice(space)),
  );
  if (odd !== "") element.append(h("p", { class: "odd" }, odd));
  /** @type {DrawnCell[]} */
  const drawn = [];
  const row = h("div", { class: "cells", role: "group", "aria-label": `pages of ${key}; ↑ and ↓ move` });
  for (const cell of allCells(area)) {
    const cellElement = drawCell(state, cell, context);
    row.append(cellElement);
    drawn.push({ page: cell[0], count: cell[1], element: cellElement });
  }
  oneStop(row, "button");
  element.append(row);
  return { element, cells: drawn };
}

/**
 * @param {State} state
 * @param {Cell} cell
 * @param {Context} context
 */
function drawCell(state, cell, context) {
  const [, , kind, pfn, head, marks] = cell;
  const key = head ? `f${head}` : "";
  const folio = head ? folioOf(state, head) : undefined;
  const shared = folio !== undefined && folio.mapcount > 1;
  const fresh = key !== "" && context.news.get(key) === "born";
  const words = faceInWords(cell, state);
  const button = h(
    "button",
    {
      type: "button",
      tabindex: "-1",
      class: `cell kind-${kind || "none"}${shared ? " shared" : ""}${marks & 1 ? " writable" : ""}${fresh ? " fresh" : ""}`,
      "aria-label": key === "" ? words : `${words}; ask who maps it`,
      "data-ask": key,
      "aria-disabled": key === "" && "true",
      click: () => key !== "" && context.ask(key),
      mouseenter: () => context.hint(key, words),
      focus: () => context.hint(key, words),
    },
    face(cell, state),
  );
  if (head) button.style.setProperty("--hue", String((pfn * 47) % 360));
  return button;
}
