// SPDX-License-Identifier: GPL-2.0-or-later
/**
 * @file Draws the whole history: its processes over time, what each design holds, and where designs differ.
 *
 * All rows share one axis, which counts events. Pressing or dragging on it goes to a moment, a name to a process.
 */

import { h, svg } from "./draw.js";
import { apartLine, grouped, kib } from "./words.js";

/** @typedef {import("./film.js").Film} Film */
/** @typedef {import("./film.js").Life} Life */

/** The overview of a film; not there in one that has no processes to show. */
export class Overview {
  /**
   * @param {HTMLElement} place
   * @param {Film} film
   * @param {(step: number) => void} go
   * @param {(pid: number) => void} follow
   */
  constructor(place, film, go, follow) {
    this.film = film;
    this.go = go;
    /** @type {[from: number, to: number]} */
    this.range = [film.first - 1, Math.max(film.last, film.first)];
    this.cursor = h("div", { class: "cursor" });
    this.lives = h("div", { class: "lives", tabindex: "0", role: "group", "aria-label": "Processes over time" });
    /** @type {HTMLElement[]} */
    this.names = [];
    if (film.lives.length === 0) return;
    this.names = film.lives.map((life) => this.name(life, follow));
    film.lives.forEach((life, row) => this.lives.append(this.names[row], h("div", { class: "track" }, this.bar(life))));
    if (film.more_lives > 0) this.lives.append(h("p", { class: "quiet" }, `${grouped(film.more_lives)} more, which did less`));
    const held = film.designs.flatMap((design, slot) => this.held(design.name, slot));
    place.append(this.lives, h("div", { class: "held" }, ...held), this.cursor);
    place.addEventListener("pointerdown", (event) => this.press(event));
    place.addEventListener("pointermove", (event) => event.buttons === 1 && this.press(event));
    this.place = place;
  }

  /**
   * Where on the axis an event is, in percent.
   * @param {number} event
   */
  at(event) {
    const [from, to] = this.range;
    return (100 * (Math.min(Math.max(event, from), to) - from)) / (to - from);
  }

  /**
   * The step that has an event.
   * @param {number} event
   */
  step(event) {
    let low = 0;
    let high = this.film.steps.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.film.steps[middle].events < event) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  /**
   * @param {Life} life
   * @param {(pid: number) => void} follow
   */
  name(life, follow) {
    const [pid, , depth, born, , called = ""] = life;
    const act = () => {
      follow(pid);
      this.go(this.step(born));
    };
    const button = h("button", { type: "button", class: "who", title: "Follow this process", click: act }, `${pid}${called === "" ? "" : ` ${called}`}`);
    button.style.setProperty("--depth", String(Math.min(depth, 8)));
    return button;
  }

  /** @param {Life} life */
  bar([pid, parent, , born, ended]) {
    const from = this.at(born - 1);
    const bar = h("div", { class: "life", title: `process ${pid}${parent === 0 ? "" : ` of ${parent}`}, from event ${grouped(born)}${ended === 0 ? "" : ` to ${grouped(ended)}`}` });
    bar.style.left = `${from}%`;
    bar.style.width = `${Math.max(this.at(ended || this.range[1]) - from, 0.2)}%`;
    return bar;
  }

  /**
   * What a design holds over time, and where it differs from others.
   * @param {string} name
   * @param {number} slot
   */
  held(name, slot) {
    let bytes = 0;
    const values = this.film.steps.map((step) => {
      const holding = step.put?.[`${slot}/`];
      if (holding?.is === "holding") bytes = holding.objects.reduce((sum, line) => sum + line[2], 0);
      return bytes;
    });
    this.most = Math.max(this.most ?? 1, ...values);
    const height = 30;
    const draw = () => {
      const points = values.flatMap((value, number) => {
        const y = height - (height * value) / (this.most ?? 1);
        const before = this.film.steps[number - 1]?.events ?? this.range[0];
        return [`${10 * this.at(before)},${y}`, `${10 * this.at(this.film.steps[number].events)},${y}`];
      });
      line.setAttribute("points", [`0,${height}`, ...points, `1000,${height}`].join(" "));
    };
    const line = svg("polygon", { class: `bytes slot-${slot}` });
    queueMicrotask(draw); // when the greatest of all designs is known
    const chart = svg("svg", { viewBox: `0 0 1000 ${height}`, preserveAspectRatio: "none", role: "img", "aria-label": `${name} holds at most ${kib(Math.max(...values))}` }, line);
    const marks = this.film.steps.flatMap((step, number) =>
      (step.apart ?? [])
        .filter((one) => one[0] === slot)
        .map((one) => {
          const mark = h("div", { class: `differs ${one[1] > 0 ? "misses" : "visits"}`, title: `step ${grouped(number)}: ${apartLine(one)}` });
          mark.style.left = `${this.at(step.events)}%`;
          return mark;
        }),
    );
    const label = h("p", {}, h("span", { class: "mark" }, String.fromCharCode(97 + slot)), ` ${name} `, h("span", { class: "quiet" }, `at most ${kib(Math.max(...values))}`));
    return [label, h("div", { class: "track" }, chart, ...marks)];
  }

  /** @param {PointerEvent} event */
  press(event) {
    if (event.target instanceof Element && event.target.closest("button")) return;
    const track = this.place?.querySelector(".track")?.getBoundingClientRect();
    if (track === undefined || event.clientX < track.left) return;
    event.preventDefault();
    const part = Math.min(1, (event.clientX - track.left) / track.width);
    const [from, to] = this.range;
    this.go(this.step(Math.ceil(from + part * (to - from))));
  }

  /**
   * Show which step is seen, and who acts in it.
   * @param {number} number
   */
  draw(number) {
    if (this.place === undefined) return;
    const step = this.film.steps[number];
    const before = this.film.steps[number - 1]?.events ?? step.events;
    this.cursor.style.setProperty("--from", String(this.at(before) / 100));
    this.cursor.style.setProperty("--to", String(this.at(step.events) / 100));
    const acting = this.film.lives.findIndex(([pid, , , born, ended]) => pid === step.pid && born <= step.events && (ended === 0 || ended > before));
    this.names.forEach((who, row) => who.classList.toggle("acting", row === acting));
    const { offsetTop, offsetHeight } = this.names[Math.max(acting, 0)];
    const list = this.lives;
    if (offsetTop < list.scrollTop || offsetTop + offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = offsetTop - list.clientHeight / 2;
  }
}
