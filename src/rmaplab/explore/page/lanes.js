// SPDX-License-Identifier: GPL-2.0-or-later
/** @file Draws a race: a lane for each CPU, what it holds and does next, and who took which step. */

import { h, setChildren } from "./draw.js";
import { every } from "./film.js";
import { cpuLine } from "./words.js";

/** @typedef {import("./film.js").Film} Film */
/** @typedef {import("./film.js").State} State */

/** The CPUs of a race; not there in a film that is none. */
export class Lanes {
  /**
   * @param {HTMLElement} place
   * @param {Film} film
   * @param {(step: number) => void} go
   */
  constructor(place, film, go) {
    place.hidden = film.cpus.length === 0;
    this.names = film.cpus;
    this.heads = h("div", { class: "heads" });
    this.rows = film.steps.map((step, number) => {
      const lines = (step.did ?? []).map((did) => h("span", {}, did));
      if (lines.length === 0) lines.push(h("span", {}, step.words));
      const who = step.cpu === undefined ? "" : `CPU ${step.cpu}: `;
      const button = h("button", { type: "button", "aria-label": `step ${number}, ${who}${lines.map((line) => line.textContent).join("; ")}`, click: () => go(number) }, h("span", { class: "number" }, String(number)), ...lines);
      const row = h("li", { class: step.cpu === undefined && "all" }, button);
      row.style.setProperty("--lane", String((step.cpu ?? 0) + 1));
      return row;
    });
    this.list = h("ol", { class: "turns", tabindex: "0", "aria-label": "Who takes which step" }, ...this.rows);
    this.current = this.rows[0];
    place.style.setProperty("--lanes", String(film.cpus.length));
    place.append(this.heads, this.list);
  }

  /**
   * @param {State} state
   * @param {number} number
   * @param {number} acting the CPU that took the step
   */
  draw(state, number, acting) {
    if (this.names.length === 0) return;
    const cpus = every(state, "cpu");
    const heads = this.names.map((name, cpu) => {
      const part = cpus.find((one) => one.number === cpu);
      const words = part === undefined ? "not begun yet" : cpuLine(part);
      const how = part?.waits ? " waits" : part?.next === "" ? " done" : "";
      return h("div", { class: `lane${how}${cpu === acting ? " acting" : ""}` }, h("h3", {}, `CPU ${cpu} ${name}`), h("p", {}, words));
    });
    setChildren(this.heads, heads);
    this.current.removeAttribute("aria-current");
    this.current = this.rows[number];
    this.current.setAttribute("aria-current", "step");
    this.rows.forEach((row, at) => row.classList.toggle("ahead", at > number));
  }

  /** Keep the current step in sight. */
  follow() {
    const { offsetTop, offsetHeight } = this.current;
    const list = this.list;
    if (offsetTop < list.scrollTop || offsetTop + offsetHeight > list.scrollTop + list.clientHeight) {
      list.scrollTop = offsetTop - Math.max(4, Math.min(list.clientHeight / 3, list.clientHeight - offsetHeight));
    }
  }
}
