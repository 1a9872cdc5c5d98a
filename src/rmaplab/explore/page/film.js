// SPDX-License-Identifier: GPL-2.0-or-later
/**
 * @file The film that Python made (explore/parts.py): its records, and the state after each step.
 *
 * Invariant: a part object is shared by all states in which it is the same, so `===` tells whether it changed.
 */

/**
 * @typedef {{is: "process", pid: number, parent: number, mm: number, name: string, born: number}} Process
 * @typedef {{is: "space", id: number, pids: number[], areas: number[], pages: number, born: number}} Space
 * @typedef {{is: "folded", parent: number, processes: number, areas: number, pages: number, born: number}} Folded
 * @typedef {[page: number, count: number, kind: string, pfn: number, head: number, marks: number]} Cell
 * @typedef {{is: "area", id: number, mm: number, start: number, end: number, pgoff: number, rights: string,
 *   backing: string, prepared: boolean, cells: Cell[], more: number, apart: string[], why: string, born: number}} Area
 * @typedef {{is: "folio", pfn: number, pages: number, index: number, mapcount: number, flags: string,
 *   anchors: string[], walks: [answer: number, base: number][], born: number}} Folio
 * @typedef {[vma: number, page: number, hit: boolean, via: string[]]} Place
 * @typedef {{places: Place[], held: string[], trail: string[], work: [string, number][], more: number,
 *   more_hits: number, waits: string[]}} Answer
 * @typedef {{is: "part", group: string, kind: string, label: string, facts: [string, string][], why: string,
 *   above: string, side: string, area: number, mm: number, count: number, x: number, y: number, born: number}} Part
 * @typedef {{is: "holding", objects: [string, number, number][], born: number}} Holding
 * @typedef {{is: "cpu", number: number, name: string, holds: string[], next: string, waits: boolean, born: number}} Cpu
 * @typedef {Cpu | Process | Space | Folded | Area | Folio | Part | Holding} AnyPart
 * @typedef {[slot: number, what: string, key: string, words: string]} Note
 * @typedef {[slot: number, work: [string, number][], locks: [string, number, boolean][]]} Effort
 * @typedef {{events: number, op: string, pid: number, words: string, say?: string, ask?: string,
 *   put?: Record<string, AnyPart>, gone?: string[], notes?: Note[], efforts?: Effort[], folded_notes?: number,
 *   apart?: Apart[], cpu?: number, did?: string[], wrong?: string}} Step
 * @typedef {[slot: number, missed: number, visited: number]} Apart
 * @typedef {[pid: number, parent: number, depth: number, born: number, ended: number, name?: string]} Life
 * @typedef {{name: string, about: Record<string, string>}} DesignLine
 * @typedef {{title: string, origin: string, profile: string, leader: string, designs: DesignLine[], events: number,
 *   first: number, last: number, steps: Step[], answers: Answer[], differences: string[],
 *   lives: Life[], more_lives: number, cpus: string[], path: string}} Film
 * @typedef {Map<string, AnyPart>} State
 */

/**
 * The film from the text of the page's data block: base64 of gzip of JSON.
 * @param {string} text
 * @returns {Promise<Film>}
 */
export async function unpack(text) {
  const bytes = Uint8Array.from(atob(text.trim()), (letter) => letter.charCodeAt(0));
  const Unzip = /** @type {any} */ (globalThis).DecompressionStream; // which TypeScript 4.8 does not know
  const stream = new Blob([bytes]).stream().pipeThrough(new Unzip("gzip"));
  return new Response(stream).json();
}

/** The states of a film, worked out when they are asked for. */
export class Reel {
  /** @param {Film} film */
  constructor(film) {
    this.film = film;
    /** @type {State[]} */
    this.states = [];
  }

  /**
   * The state after step `number`.
   * @param {number} number
   * @returns {State}
   */
  at(number) {
    while (this.states.length <= number) {
      const step = this.film.steps[this.states.length];
      /** @type {State} */
      const state = new Map(this.states[this.states.length - 1] ?? []);
      for (const key of step.gone ?? []) state.delete(key);
      for (const [key, part] of Object.entries(step.put ?? {})) state.set(key, part);
      this.states.push(state);
    }
    return this.states[number];
  }
}

/**
 * Numbers of the steps that `text` finds: in the words of the operation, or as "process N", or by operation.
 * @param {Film} film
 * @param {string} text
 * @returns {number[]}
 */
export function search(film, text) {
  const wanted = text.trim().toLowerCase();
  const found = film.steps.map((_, number) => number);
  if (wanted === "") return found;
  const pid = /^(?:process |pid )?(\d+)$/.exec(wanted);
  return found.filter((number) => {
    const step = film.steps[number];
    if (pid !== null && step.pid === Number(pid[1])) return true;
    return `${step.op} ${step.words} ${step.say ?? ""} ${(step.did ?? []).join(" ")}`.toLowerCase().includes(wanted);
  });
}

/**
 * All parts of one sort.
 * @template {AnyPart["is"]} K
 * @param {State} state
 * @param {K} kind
 * @returns {Extract<AnyPart, {is: K}>[]}
 */
export function every(state, kind) {
  const found = [];
  for (const part of state.values()) if (part.is === kind) found.push(part);
  return /** @type {Extract<AnyPart, {is: K}>[]} */ (found);
}

/**
 * @param {State} state
 * @param {number} id
 * @returns {Area | undefined}
 */
export function areaOf(state, id) {
  return /** @type {Area | undefined} */ (state.get(`V${id}`));
}

/**
 * @param {State} state
 * @param {number} head
 * @returns {Folio | undefined}
 */
export function folioOf(state, head) {
  return /** @type {Folio | undefined} */ (state.get(`f${head}`));
}

/**
 * The cells of a VMA with its unmapped pages between them, which have the kind "". Few of those are one cell
 * each, many are one together.
 * @param {Area} area
 * @returns {Cell[]}
 */
export function allCells(area) {
  const pages = (area.end - area.start) / 4096;
  const mapped = area.cells.reduce((sum, cell) => sum + cell[1], 0) + area.more;
  const single = pages - mapped <= 8;
  /** @type {Cell[]} */
  const cells = [];
  /** @param {number} from @param {number} to */
  const gap = (from, to) => {
    if (single) for (let page = from; page < to; page++) cells.push([page, 1, "", 0, 0, 0]);
    else if (from < to) cells.push([from, to - from, "", 0, 0, 0]);
  };
  let at = 0;
  for (const cell of area.cells) {
    gap(at, cell[0]);
    cells.push(cell);
    at = cell[0] + cell[1];
  }
  if (area.more) cells.push([at, pages - at, "more", 0, 0, 0]);
  else gap(at, pages);
  return cells;
}

/**
 * The cell that has `page`.
 * @template {{page: number, count: number}} T
 * @param {T[]} cells
 * @param {number} page
 * @returns {T | undefined}
 */
export function cellAt(cells, page) {
  return cells.find((cell) => cell.page <= page && page < cell.page + cell.count);
}

/**
 * The drawings of a design in the order in which to show them, each with its parts in theirs.
 * @param {State} state
 * @param {number} slot
 * @param {DesignLine} design
 * @returns {{id: string, sort: string, title: string, parts: [string, Part][]}[]}
 */
export function drawings(state, slot, design) {
  /** @type {Map<string, [string, Part][]>} */
  const groups = new Map();
  for (const [key, part] of state) {
    if (part.is !== "part" || !key.startsWith(`${slot}/`)) continue;
    const members = groups.get(part.group);
    if (members === undefined) groups.set(part.group, [[key, part]]);
    else members.push([key, part]);
  }
  const sorts = Object.keys(design.about);
  const result = [...groups].map(([group, parts]) => {
    const [id, title] = group.split("|");
    parts.sort((a, b) => a[1].y - b[1].y || a[1].x - b[1].x);
    return { id, sort: id.split(".")[0], title, parts };
  });
  const byNumber = new Intl.Collator("en", { numeric: true });
  return result.sort(
    (a, b) => sorts.indexOf(a.sort) - sorts.indexOf(b.sort) || byNumber.compare(a.id, b.id),
  );
}
