// SPDX-License-Identifier: GPL-2.0-or-later
/** @file The page: shows a step, goes from one to the next, and plays walks. */

import { h } from "./draw.js";
import { cellAt, Reel, search, unpack } from "./film.js";
import { Lanes } from "./lanes.js";
import { Overview } from "./overview.js";
import { Spaces } from "./spaces.js";
import { Structures } from "./structures.js";
import { folioLine, grouped, NOT_ASKED, plural, walk, walkSummary } from "./words.js";

/** @typedef {import("./film.js").Film} Film */
/** @typedef {import("./film.js").State} State */

const PLAY = 2200; // milliseconds a step
const NOTED = 250; // milliseconds that a step has to last to be noted in the address
const VISIT = 420; // milliseconds a place of a walk

/**
 * @param {string} id
 * @returns {HTMLElement}
 */
function place(id) {
  const element = document.getElementById(id);
  if (element === null) throw new Error(`the page has no place called ${id}`);
  return element;
}

/**
 * What an event happened to.
 * @param {Event} event
 * @param {string} selector
 * @returns {(HTMLElement | SVGElement) | null}
 */
function closest(event, selector) {
  return event.target instanceof Element ? event.target.closest(selector) : null;
}

/**
 * The letter that stands for a design in marks on pages.
 * @param {number} slot
 */
function letter(slot) {
  return String.fromCharCode(97 + slot);
}

class Page {
  /** @param {Film} film */
  constructor(film) {
    this.film = film;
    this.reel = new Reel(film);
    this.step = 0;
    this.asked = "";
    /** @type {ReturnType<typeof setInterval> | undefined} */
    this.playing = undefined;
    /** @type {ReturnType<typeof setTimeout>[]} */
    this.visits = [];
    /** @type {ReturnType<typeof setTimeout> | undefined} */
    this.noting = undefined;
    this.still = matchMedia("(prefers-reduced-motion: reduce)");
    this.lanes = new Lanes(place("lanes"), film, (step) => this.go(step));
    place("race").hidden = film.cpus.length === 0;
    this.overview = new Overview(place("whole"), film, (step) => this.go(step), (pid) => this.follow_process(pid));
    place("overview").hidden = film.lives.length === 0;
    this.spaces = new Spaces(place("spaces"));
    this.structures = film.designs.map((design, slot) => {
      const panel = h("section", { class: "design", "data-slot": slot }, h("h2", {}, h("span", { class: "mark" }, letter(slot)), ` ${design.name}`));
      place("designs").append(panel);
      return new Structures(panel, slot, design);
    });
    this.operations = film.steps.map((step, number) =>
      h(
        "li",
        {},
        h("button", { type: "button", click: () => this.go(number) }, h("span", { class: "number" }, String(number)), ` ${step.words}`),
      ),
    );
    place("operations").append(...this.operations);
    this.current = this.operations[0];
    this.slider = /** @type {HTMLInputElement} */ (place("slider"));
    this.slider.max = String(film.steps.length - 1);
    this.find = /** @type {HTMLInputElement} */ (place("find"));
    document.title = `${film.title} – rmaplab`;
    place("title").textContent = film.title;
    const size = film.cpus.length > 0 ? plural(film.events, "step") : plural(film.events, "event");
    const window = film.last - film.first + 1 < film.events ? `, events ${grouped(film.first)} to ${grouped(film.last)} of ${grouped(film.events)}` : `, ${size}`;
    const led = film.designs.length > 1 ? `, VMAs merge as ${film.leader} lets them` : "";
    const wrong = film.differences.length === 0 ? "" : `. ${plural(film.differences.length, "result")} came out otherwise: ${film.differences[0]}`;
    place("origin").textContent = `${film.origin}${window}; rules of Linux ${film.profile}${led}${wrong}`;
    this.listen();
    this.go(Number(/^#(\d+)$/.exec(location.hash)?.[1] ?? 0));
  }

  listen() {
    place("first").addEventListener("click", () => this.go(0));
    place("back").addEventListener("click", () => this.go(this.step - 1));
    place("next").addEventListener("click", () => this.go(this.step + 1));
    place("last").addEventListener("click", () => this.go(this.film.steps.length - 1));
    place("play").addEventListener("click", () => this.play());
    place("forget").addEventListener("click", () => this.ask(""));
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.find.addEventListener("input", () => this.filter());
    this.find.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      const found = search(this.film, this.find.value);
      this.go(found.find((number) => number > this.step) ?? found[0] ?? this.step);
    });
    document.addEventListener("keydown", (event) => this.key(event));
    place("stage").addEventListener("click", (event) => {
      const key = closest(event, "[data-ask]")?.dataset.ask;
      if (key) this.ask(key);
    });
    for (const kind of ["mouseover", "focusin"]) {
      place("stage").addEventListener(kind, (event) => {
        const thing = closest(event, "[data-ask], [data-key]");
        const { ask, key } = thing?.dataset ?? {};
        if (ask !== undefined) this.hint(ask, thing?.ariaLabel ?? "");
        else if (key !== undefined) this.hint(key);
      });
    }
    addEventListener("hashchange", () => {
      const number = Number(/^#(\d+)$/.exec(location.hash)?.[1] ?? this.step);
      if (number !== this.step) this.go(number);
    });
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    const target = /** @type {HTMLElement} */ (event.target);
    if (target.matches("input")) {
      if (event.key === "Escape") target.blur();
      return;
    }
    /** @type {Record<string, () => void>} */
    const acts = {
      ArrowRight: () => this.go(this.step + 1),
      ArrowLeft: () => this.go(this.step - 1),
      Home: () => this.go(0),
      End: () => this.go(this.film.steps.length - 1),
      Escape: () => this.ask(""),
      p: () => this.play(),
      "/": () => this.find.focus(),
    };
    const act = acts[event.key];
    if (act === undefined) return;
    event.preventDefault();
    act();
  }

  /** Start or stop going from step to step. */
  play() {
    if (this.playing !== undefined) {
      clearInterval(this.playing);
      this.playing = undefined;
    } else {
      if (this.step === this.film.steps.length - 1) this.go(0);
      this.playing = setInterval(() => {
        if (this.step === this.film.steps.length - 1) this.play();
        else this.go(this.step + 1);
      }, PLAY);
    }
    place("play").textContent = this.playing === undefined ? "Play" : "Pause";
  }

  filter() {
    const found = new Set(search(this.film, this.find.value));
    this.operations.forEach((item, number) => (item.hidden = !found.has(number)));
    place("found").textContent = this.find.value.trim() === "" ? "" : `${grouped(found.size)} found`;
  }

  /**
   * Find the steps of a process.
   * @param {number} pid
   */
  follow_process(pid) {
    this.find.value = `process ${pid}`;
    this.filter();
  }

  /**
   * Show step `number`.
   * @param {number} number
   */
  go(number) {
    this.step = Math.max(0, Math.min(number, this.film.steps.length - 1));
    const step = this.film.steps[this.step];
    const state = this.reel.at(this.step);
    const focused = document.activeElement;
    this.slider.value = String(this.step);
    place("where").textContent = `step ${grouped(this.step)} of ${grouped(this.film.steps.length - 1)}`;
    place("words").textContent = step.words;
    place("say").textContent = step.say ?? "";
    place("wrong").textContent = step.wrong === undefined ? "" : `Broken: ${step.wrong}.`;
    this.current.removeAttribute("aria-current");
    this.current = this.operations[this.step];
    this.current.setAttribute("aria-current", "step");
    requestAnimationFrame(() => this.follow());
    this.overview.draw(this.step);
    this.lanes.draw(state, this.step, step.cpu ?? -1);
    this.spaces.draw(state);
    for (const structures of this.structures) structures.draw(state);
    this.news();
    this.changes();
    this.hint("");
    clearTimeout(this.noting);
    this.noting = setTimeout(() => this.note(), NOTED);
    const gone = this.asked !== "" && !state.has(this.asked);
    this.ask(step.ask || (gone ? "" : this.asked));
    this.refocus(focused);
  }

  /**
   * Keep the focus where it was, though what had it was drawn again.
   * @param {Element | null} element
   */
  refocus(element) {
    if (element === null || element === document.activeElement) return;
    const ask = element.getAttribute("data-ask");
    const key = element.closest("[data-key]")?.getAttribute("data-key");
    const area = key == null ? null : document.querySelector(`[data-key="${CSS.escape(key)}"]`);
    const same = element.isConnected ? element : ask === null ? area : area?.querySelector(`[data-ask="${CSS.escape(ask)}"]`);
    if (same instanceof HTMLElement || same instanceof SVGElement) same.focus({ preventScroll: true });
  }

  /** Note the step in the address, so that it can be shared. Browsers make that slow, so not for steps in passing. */
  note() {
    if (location.hash !== `#${this.step}`) history.replaceState(null, "", `#${this.step}`);
  }

  /** Keep the current step in sight in the list of all. */
  follow() {
    const list = place("operations");
    const { offsetTop, offsetHeight } = this.current;
    if (offsetTop < list.scrollTop || offsetTop + offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = offsetTop - list.clientHeight / 3;
    }
    this.lanes.follow();
  }

  /** Mark what the step made and changed. */
  news() {
    for (const old of document.querySelectorAll(".born, .changed, .fresh")) old.classList.remove("born", "changed", "fresh");
    for (const [, what, key] of this.film.steps[this.step].notes ?? []) {
      if (what === "gone") continue;
      document.querySelector(`[data-key="${CSS.escape(key)}"]`)?.classList.add(what);
      if (what === "born") for (const cell of document.querySelectorAll(`[data-ask="${CSS.escape(key)}"]`)) cell.classList.add("fresh");
    }
  }

  /** What the step did, participant by participant. */
  changes() {
    const step = this.film.steps[this.step];
    const sections = [];
    for (let slot = -1; slot < this.film.designs.length; slot++) {
      const notes = (step.notes ?? []).filter((note) => note[0] === slot);
      const effort = (step.efforts ?? []).find((one) => one[0] === slot);
      if (notes.length === 0 && effort === undefined) continue;
      const section = h("section", {}, h("h3", {}, slot < 0 ? "The machine" : this.film.designs[slot].name));
      if (notes.length > 0) {
        section.append(h("ul", { class: "notes" }, ...notes.map(([, what, , words]) => h("li", { class: `note-${what}` }, words))));
      }
      if (effort !== undefined && effort[1].length > 0) {
        section.append(h("p", {}, `Work: ${effort[1].map(([name, count]) => `${name} ${grouped(count)}`).join(", ")}.`));
      }
      if (effort !== undefined && effort[2].length > 0) {
        const locks = effort[2].map(([name, count, write]) => `${name} ${write ? "exclusively" : "shared"}${count === 1 ? "" : ` ×${grouped(count)}`}`);
        section.append(h("p", {}, `Locks: ${locks.join(", ")}.`));
      }
      sections.push(section);
    }
    if (step.folded_notes) sections.push(h("p", {}, `${grouped(step.folded_notes)} more changes are folded.`));
    if (sections.length === 0) sections.push(h("p", { class: "quiet" }, "Nothing."));
    place("changes").replaceChildren(...sections);
  }

  /**
   * Say why a part is there and which step made it.
   * @param {string} key
   * @param {string} [extra]
   */
  hint(key, extra = "") {
    const part = key === "" ? undefined : this.reel.at(this.step).get(key);
    const words = [extra === "" ? "" : `${extra[0].toUpperCase()}${extra.slice(1)}.`];
    if (part !== undefined) {
      if (part.is === "part") words.push(`${part.kind} ${part.label}.`);
      if ("why" in part) words.push(part.why);
      if (part.is === "folio") words.push(folioLine(this.film, part));
      words.push(part.born === 0 ? "" : `Made in step ${grouped(part.born)}.`);
    }
    place("hint").textContent = words.join(" ").trim() || "Point at anything to learn why it is there; click a page to ask who maps it.";
  }

  /**
   * Ask every design who maps a folio, and show its walks; "" takes them away.
   * @param {string} key
   */
  ask(key) {
    for (const timer of this.visits) clearTimeout(timer);
    this.visits = [];
    for (const old of document.querySelectorAll(".badge")) old.remove();
    for (const old of document.querySelectorAll(".lit, .vain, .seen, .subject")) old.classList.remove("lit", "vain", "seen", "subject");
    this.asked = key;
    const state = this.reel.at(this.step);
    const folio = state.get(key);
    place("forget").hidden = folio === undefined;
    if (folio === undefined || folio.is !== "folio") {
      place("asked").replaceChildren(h("p", { class: "quiet" }, "Click a page: each design will say which page tables map it."));
      return;
    }
    for (const cell of document.querySelectorAll(`[data-ask="${key}"]`)) cell.classList.add("subject");
    /** @type {HTMLElement[]} */
    const sections = [h("p", {}, folioLine(this.film, folio))];
    if (folio.walks.length === 0) sections.push(h("p", {}, NOT_ASKED));
    this.film.designs.slice(0, folio.walks.length).forEach((design, slot) => {
      const places = walk(this.film, state, folio, slot);
      const items = places.map((place) => h("li", { class: place.hit ? "hit" : "vain" }, place.words));
      sections.push(
        h("section", { "data-walk": slot }, h("h3", {}, h("span", { class: "mark" }, letter(slot)), ` ${design.name}`), h("ol", {}, ...items), h("p", {}, walkSummary(this.film, folio, slot))),
      );
      for (const at of this.film.answers[folio.walks[slot][0]].trail) this.mark(at, "seen");
      this.mark(folio.anchors[slot], "lit");
      places.forEach((place, order) => {
        const visit = () => this.visit(slot, order, place, items[order]);
        if (this.still.matches) visit();
        else this.visits.push(setTimeout(visit, order * VISIT));
      });
    });
    place("asked").replaceChildren(...sections);
  }

  /**
   * Light one place of a walk.
   * @param {number} slot
   * @param {number} order
   * @param {{vma: number, page: number, hit: boolean, via: string[]}} where
   * @param {HTMLElement} item
   */
  visit(slot, order, where, item) {
    item.classList.add("reached");
    for (const key of where.via) this.mark(key, where.hit ? "lit" : "vain");
    const cell = cellAt(this.spaces.cells(where.vma), where.page);
    if (cell === undefined) return;
    cell.element.classList.add(where.hit ? "lit" : "vain");
    cell.element.append(
      h("span", { class: `badge slot-${slot} ${where.hit ? "hit" : "miss"}`, "data-slot": slot, "data-order": order, "data-vma": where.vma, "data-page": where.page, "data-hit": String(where.hit), "aria-hidden": "true" }, `${letter(slot)}${order + 1}`),
    );
  }

  /**
   * @param {string} key
   * @param {string} how
   */
  mark(key, how) {
    if (key !== "") document.querySelector(`.part[data-key="${CSS.escape(key)}"]`)?.classList.add(how);
  }
}

const data = place("film").textContent ?? "";
unpack(data).then((film) => {
  const page = new Page(film);
  document.documentElement.dataset.ready = String(page.film.steps.length);
});
