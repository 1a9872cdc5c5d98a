// SPDX-License-Identifier: GPL-2.0-or-later
/** @file What the page says, in the same words as explore/text.py. */

import { areaOf, folioOf } from "./film.js";

/** @typedef {import("./film.js").Area} Area */
/** @typedef {import("./film.js").Cell} Cell */
/** @typedef {import("./film.js").Film} Film */
/** @typedef {import("./film.js").Folio} Folio */
/** @typedef {import("./film.js").State} State */

export const KSM = 4;
export const DOOMED = 8;
export const MISSED = 16;
export const NOT_ASKED = "There are too many pages here to have asked for each: this one was not. A narrower window asks for more.";

/** @param {number} number */
export function hex(number) {
  return number < 0 ? `-0x${(-number).toString(16)}` : `0x${number.toString(16)}`;
}

/**
 * A number with its thousands apart; toLocaleString() does the same, a hundred times slower.
 * @param {number} number
 */
export function grouped(number) {
  return String(number).replace(/\B(?=(?:\d{3})+$)/g, ",");
}

/**
 * @param {number} count
 * @param {string} noun
 */
export function plural(count, noun) {
  return `${grouped(count)} ${noun}${count === 1 ? "" : noun.endsWith("s") ? "es" : "s"}`;
}

/**
 * Bytes as KiB.
 * @param {number} bytes
 */
export function kib(bytes) {
  return `${grouped(Math.round(bytes / 1024))} KiB`;
}

/**
 * How a design differs from the others at a step.
 * @param {import("./film.js").Apart} apart
 */
export function apartLine([, missed, visited]) {
  const visits = `visits ${plural(visited, "place")}`;
  return missed > 0 ? `misses ${plural(missed, "mapping")}, ${visits}` : `${visits}, more than another design`;
}

/**
 * What is written on a cell.
 * @param {Cell} cell
 * @param {State} state
 */
export function face([, count, kind, pfn, head, marks], state) {
  const many = count === 1 ? "" : `+${grouped(count - 1)}`;
  if (kind === "") return count === 1 ? "·" : `· ${grouped(count)}`;
  if (kind === "more") return "…";
  if (kind === "Z") return `zero${many}`;
  if (kind === "F") return `file${many}`;
  if (kind === "S") return `swap ${pfn}${many}`;
  const mapcount = folioOf(state, head)?.mapcount ?? 0;
  const shared = mapcount > 1 ? ` ×${grouped(mapcount)}` : "";
  const missed = marks & MISSED ? " missed" : marks & DOOMED ? " will be missed" : "";
  return `${kind === "M" ? "→" : ""}${pfn}${many}${marks & KSM ? " ksm" : ""}${shared}${missed}`;
}

/**
 * The same for somebody who cannot see the cell.
 * @param {Cell} cell
 * @param {State} state
 */
export function faceInWords([page, count, kind, pfn, head, marks], state) {
  const which = count === 1 ? `page ${page}` : `pages ${page} to ${page + count - 1}`;
  if (kind === "") return `${which}: not mapped`;
  if (kind === "more") return `${which}: folded`;
  if (kind === "Z") return `${which}: the zero page`;
  if (kind === "F") return `${which}: page cache`;
  if (kind === "S") return `${which}: in swap slot ${pfn}`;
  const folio = folioOf(state, head);
  const shared = folio === undefined ? "" : `, mapped ${plural(folio.mapcount, "time")}`;
  const how = marks & KSM ? ", merged by KSM" : marks & 2 ? ", exclusive" : "";
  const migrating = kind === "M" ? " under migration" : "";
  const missed = marks & MISSED ? ", missed" : marks & DOOMED ? ", will be missed" : "";
  return `${which}: folio ${pfn}${migrating}${shared}${how}${marks & 1 ? ", writable" : ""}${missed}`;
}

/** @param {import("./film.js").Space} space */
export function spaceTitle(space) {
  if (space.pids.length === 0) return `Address space ${space.id} of no process`;
  return space.pids.length === 1 ? `Process ${space.pids[0]}` : `Processes ${space.pids.join(", ")}`;
}

/**
 * What a CPU holds and is about to do.
 * @param {import("./film.js").Cpu} cpu
 */
export function cpuLine(cpu) {
  const holds = cpu.holds.length === 0 ? "" : `holds ${cpu.holds.join(", ")}; `;
  if (cpu.next === "") return `${holds}has come to its end`;
  return `${holds}${cpu.waits ? "has to wait before it" : "next"} ${cpu.next}`;
}

/** @param {Area} area */
export function areaLine(area) {
  return `V${area.id} ${hex(area.start)}–${hex(area.end)} ${area.rights} ${area.backing}`;
}

/**
 * What is odd about the page offset of a VMA, "" if nothing is.
 * @param {Area} area
 */
export function offsetLine(area) {
  if (!area.prepared) return "not known to the reverse map yet";
  return area.pgoff * 4096 === area.start ? "" : `page offset ${hex(area.pgoff)}`;
}

/**
 * @param {State} state
 * @param {number} mm
 */
export function ownerOf(state, mm) {
  const space = state.get(`m${mm}`);
  if (space === undefined || space.is !== "space") return "a folded process";
  if (space.pids.length === 0) return `address space ${mm}`;
  return space.pids.length === 1 ? `process ${space.pids[0]}` : `processes ${space.pids.join(", ")}`;
}

/**
 * What is known of a folio before anybody walks.
 * @param {Film} film
 * @param {Folio} folio
 */
export function folioLine(film, folio) {
  const size = folio.pages === 1 ? "" : `, ${plural(folio.pages, "page")}`;
  const flags = folio.flags === "" ? "" : ` (${folio.flags})`;
  const anchors = folio.anchors
    .map((key, slot) => (key === "" ? "" : `${key.slice(key.indexOf("/") + 1)} in ${film.designs[slot].name}`))
    .filter((words) => words !== "");
  const points = anchors.length === 0 ? "" : ` It points to ${anchors.join(", ")}.`;
  return `Folio ${folio.pfn}${size}${flags}: page offset ${hex(folio.index)}, mapped ${plural(folio.mapcount, "time")}.${points}`;
}

/**
 * The walk of a design for a folio, a line a place.
 * @param {Film} film
 * @param {State} state
 * @param {Folio} folio
 * @param {number} slot
 * @returns {{vma: number, page: number, hit: boolean, via: string[], words: string}[]}
 */
export function walk(film, state, folio, slot) {
  const [number, base] = folio.walks[slot];
  return film.answers[number].places.map(([vma, distance, hit, via]) => {
    const page = base + distance;
    const area = areaOf(state, vma);
    const where =
      area === undefined
        ? `V${vma} of a folded process, page ${page}`
        : `${ownerOf(state, area.mm)}, V${vma}, page ${page}, ${hex(area.start + page * 4096)}`;
    return { vma, page, hit, via, words: `${where}: ${hit ? "maps it" : "does not map it"}` };
  });
}

/**
 * What a walk held and counted, and how much of it is folded.
 * @param {Film} film
 * @param {Folio} folio
 * @param {number} slot
 */
export function walkSummary(film, folio, slot) {
  const answer = film.answers[folio.walks[slot][0]];
  const places = answer.places.length + answer.more;
  const hits = answer.places.filter((place) => place[2]).length + answer.more_hits;
  const held = answer.held.length === 0 ? "no lock" : answer.held.join(", ");
  const work = answer.work.map(([name, count]) => `${name} ${grouped(count)}`).join(", ");
  const more = answer.more === 0 ? "" : ` ${grouped(answer.more)} of the places are folded.`;
  const waits = answer.waits.length === 0 ? "" : ` Now it would have to wait: ${answer.waits.join(", ")}.`;
  if (places === 0) return `Visits nothing.${work === "" ? "" : ` Counted: ${work}.`}${waits}`;
  const verb = hits === 1 ? "maps" : "map";
  return `Visits ${plural(places, "place")}, ${grouped(hits)} of which ${verb} it, holding ${held}.${more} Counted: ${work}.${waits}`;
}
