// SPDX-License-Identifier: GPL-2.0-or-later
/** @file Draws processes with their address spaces: VMAs as boxes in order of address, pages as cells. */

import { h, oneStop, setChildren } from "./draw.js";
import { allCells, areaOf, every, folioOf } from "./film.js";
import { areaLine, DOOMED, face, faceInWords, grouped, MISSED, offsetLine, plural, spaceTitle } from "./words.js";

/** @typedef {import("./film.js").Area} Area */
/** @typedef {import("./film.js").Cell} Cell */
/** @typedef {import("./film.js").State} State */
/** @typedef {{page: number, count: number, element: HTMLElement}} DrawnCell */

const UNOWNED = 2 ** 40; // above every pid

/** Address spaces; a VMA is drawn again only where something in it changed. */
export class Spaces {
  /** @param {HTMLElement} place */
  constructor(place) {
    this.place = place;
    /** @type {Map<number, HTMLElement>} */
    this.columns = new Map();
    /** @type {Map<number, {parts: unknown[], elements: HTMLElement[], cells: DrawnCell[]}>} */
    this.areas = new Map();
  }

  /** @param {State} state */
  draw(state) {
    const columns = new Map();
    const areas = new Map();
    const elements = [];
    const spaces = every(state, "space").sort((a, b) => (a.pids[0] ?? UNOWNED + a.id) - (b.pids[0] ?? UNOWNED + b.id));
    for (const space of spaces) {
      const column = this.columns.get(space.id) ?? h("section", { class: "space", "data-key": `m${space.id}` });
      /** @type {HTMLElement[]} */
      const inside = [drawTitle(state, space)];
      for (const id of space.areas) {
        const area = id < 0 ? undefined : areaOf(state, id);
        if (area === undefined) {
          inside.push(h("p", { class: "folded" }, `${grouped(-id)} more ${id === -1 ? "VMA" : "VMAs"}`));
          continue;
        }
        const parts = [area, ...area.cells.map((cell) => (cell[4] ? folioOf(state, cell[4])?.mapcount : 0))];
        let drawn = this.areas.get(id);
        if (drawn === undefined || !alike(drawn.parts, parts)) drawn = { parts, ...drawArea(state, area) };
        areas.set(id, drawn);
        inside.push(...drawn.elements);
      }
      setChildren(column, inside);
      columns.set(space.id, column);
      elements.push(column);
    }
    for (const folded of every(state, "folded")) {
      const of = folded.parent === 0 ? "without a parent here" : `of process ${folded.parent}`;
      const words = `${grouped(folded.processes)} more ${folded.processes === 1 ? "process" : "processes"} ${of}: ${plural(folded.areas, "VMA")}, ${plural(folded.pages, "page")}`;
      elements.push(h("section", { class: "space folded" }, words));
    }
    this.columns = columns;
    this.areas = areas;
    setChildren(this.place, elements);
  }

  /**
   * The drawn cells of a VMA.
   * @param {number} id
   */
  cells(id) {
    return this.areas.get(id)?.cells ?? [];
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
 * @param {State} state
 * @param {import("./film.js").Space} space
 */
function drawTitle(state, space) {
  const title = h("h3", {}, spaceTitle(space));
  const process = state.get(`p${space.pids[0]}`);
  if (process !== undefined && process.is === "process") {
    if (process.name !== "") title.append(" ", h("span", { class: "name" }, process.name));
    if (process.parent !== 0) title.append(" ", h("span", { class: "quiet" }, `child of ${process.parent}`));
  }
  return title;
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
 */
function drawArea(state, area) {
  const key = `V${area.id}`;
  const odd = offsetLine(area);
  const line = areaLine(area);
  const space = line.indexOf(" ");
  const element = h(
    "article",
    {
      class: area.prepared ? "area" : "area unprepared",
      "data-key": key,
    },
    h("h4", {}, h("b", {}, line.slice(0, space)), line.slice(space)),
  );
  if (odd !== "") element.append(h("p", { class: "odd" }, odd));
  /** @type {DrawnCell[]} */
  const drawn = [];
  const row = h("div", { class: "cells", role: "group", "aria-label": `pages of ${key}; ↑ and ↓ move` });
  for (const cell of allCells(area)) {
    const cellElement = drawCell(state, cell);
    row.append(cellElement);
    drawn.push({ page: cell[0], count: cell[1], element: cellElement });
  }
  oneStop(row, "button");
  element.append(row);
  return { elements: area.apart.length > 0 ? [drawApart(area), element] : [element], cells: drawn };
}

/**
 * @param {State} state
 * @param {Cell} cell
 */
function drawCell(state, cell) {
  const [, , kind, pfn, head, marks] = cell;
  const key = head ? `f${head}` : "";
  const folio = head ? folioOf(state, head) : undefined;
  const shared = folio !== undefined && folio.mapcount > 1;
  const words = faceInWords(cell, state);
  const button = h(
    "button",
    {
      type: "button",
      tabindex: "-1",
      class: `cell kind-${kind || "none"}${shared ? " shared" : ""}${marks & 1 ? " writable" : ""}${marks & (DOOMED | MISSED) ? " missed" : ""}`,
      "aria-label": key === "" ? words : `${words}; ask who maps it`,
      "data-ask": key,
      "aria-disabled": key === "" && "true",
    },
    face(cell, state),
  );
  if (pfn) button.style.setProperty("--hue", String((pfn * 47) % 360));
  return button;
}
