// SPDX-License-Identifier: GPL-2.0-or-later
// The page's own logic, without a browser: `node --test`.
import assert from "node:assert/strict";
import { test } from "node:test";
import { gzipSync } from "node:zlib";

import { allCells, cellAt, drawings, Reel, search, unpack } from "../../src/rmaplab/explore/page/film.js";
import { cpuLine, face, folioLine, hex, offsetLine, plural, walk, walkSummary } from "../../src/rmaplab/explore/page/words.js";

const space = { is: "space", id: 1, pids: [7], areas: [1], pages: 2, born: 1 };
const area = {
  is: "area", id: 1, mm: 1, start: 0x10000, end: 0x14000, pgoff: 0x10, rights: "rw-p", backing: "anonymous",
  prepared: true, cells: [[1, 1, "A", 512, 512, 3], [2, 1, "S", 4, 0, 0]], more: 0, apart: [], why: "", born: 1,
};
const folio = {
  is: "folio", pfn: 512, pages: 1, index: 0x11, mapcount: 2, flags: "", anchors: ["0/A1"], walks: [[0, 1]], born: 1,
};
const film = {
  title: "t", origin: "o", profile: "6.12", leader: "d", designs: [{ name: "d", about: { one: "", two: "" } }],
  events: 3, first: 1, last: 3, differences: [],
  steps: [
    { events: 0, op: "begin", pid: 0, words: "Nothing has happened yet." },
    { events: 1, op: "mmap", pid: 7, words: "Process 7 maps 4 pages.", put: { m1: space, V1: area, f512: folio } },
    { events: 2, op: "exit", pid: 7, words: "Process 7 exits.", gone: ["m1", "V1"] },
  ],
  answers: [{ places: [[1, 0, true, []], [1, 1, false, []]], held: ["RCU"], trail: [], work: [["walks", 1]], more: 3, more_hits: 1, waits: [] }],
};

test("a state is what all steps up to it have put and not taken away", () => {
  const reel = new Reel(film);
  assert.deepEqual([...reel.at(2).keys()], ["f512"]);
  assert.deepEqual([...reel.at(1).keys()], ["m1", "V1", "f512"]);
  assert.equal(reel.at(0).size, 0);
  assert.equal(reel.at(1).get("f512"), reel.at(2).get("f512"));
});

test("a film survives being packed", async () => {
  const packed = gzipSync(JSON.stringify(film)).toString("base64");
  assert.deepEqual(await unpack(`\n${packed}\n`), film);
});

test("search finds operations, words and processes", () => {
  assert.deepEqual(search(film, ""), [0, 1, 2]);
  assert.deepEqual(search(film, " MMAP "), [1]);
  assert.deepEqual(search(film, "7"), [1, 2]);
  assert.deepEqual(search(film, "process 8"), []);
  assert.deepEqual(search(film, "exits."), [2]);
});

test("few unmapped pages have a cell each, many have one together", () => {
  assert.deepEqual(allCells(area).map(([page, count, kind]) => [page, count, kind]), [[0, 1, ""], [1, 1, "A"], [2, 1, "S"], [3, 1, ""]]);
  const large = { ...area, end: area.start + 100 * 4096 };
  assert.deepEqual(allCells(large).map(([page, count, kind]) => [page, count, kind]), [[0, 1, ""], [1, 1, "A"], [2, 1, "S"], [3, 97, ""]]);
  const folded = { ...large, more: 10 };
  assert.deepEqual(allCells(folded).at(-1)?.slice(0, 3), [3, 97, "more"]);
});

test("a page is in the cell that covers it", () => {
  const cells = [{ page: 0, count: 3 }, { page: 3, count: 1 }];
  assert.equal(cellAt(cells, 2), cells[0]);
  assert.equal(cellAt(cells, 3), cells[1]);
  assert.equal(cellAt(cells, 4), undefined);
});

test("drawings come by sort, then by number", () => {
  const part = (group, x) => ({ is: "part", group, kind: "k", label: "l", facts: [], why: "", above: "", side: "", area: 0, mm: 0, count: 1, x, y: 0, born: 0 });
  const state = new Map([
    ["0/c", part("two.A10|ten", 0)], ["0/b", part("two.A9|nine", 1)], ["0/a", part("two.A9|nine", 0)],
    ["0/d", part("one|first", 0)], ["1/e", part("one|of another design", 0)],
  ]);
  const found = drawings(state, 0, film.designs[0]);
  assert.deepEqual(found.map(({ title, parts }) => [title, parts.map(([key]) => key)]), [["first", ["0/d"]], ["nine", ["0/a", "0/b"]], ["ten", ["0/c"]]]);
});

test("words", () => {
  const state = new Reel(film).at(1);
  assert.equal(hex(-16), "-0x10");
  assert.equal(hex(0x7f0000000000), "0x7f0000000000");
  assert.equal(plural(1, "place"), "1 place");
  assert.equal(plural(2000, "process"), "2,000 processes");
  assert.equal(face(area.cells[0], state), "512 ×2");
  assert.equal(face([0, 5, "A", 900, 900, 4], state), "900+4 ksm");
  assert.equal(offsetLine(area), "");
  assert.equal(offsetLine({ ...area, pgoff: 3 }), "page offset 0x3");
  assert.equal(folioLine(film, folio), "Folio 512: page offset 0x11, mapped 2 times. It points to A1 in d.");
});

test("a walk counts its pages from its base, and folds what is too much", () => {
  const state = new Reel(film).at(1);
  assert.deepEqual(walk(film, state, folio, 0).map(({ page, hit, words }) => [page, hit, words]), [
    [1, true, "process 7, V1, page 1, 0x11000: maps it"],
    [2, false, "process 7, V1, page 2, 0x12000: does not map it"],
  ]);
  assert.equal(walkSummary(film, folio, 0), "Visits 5 places, 2 of which map it, holding RCU. 3 of the places are folded. Counted: walks 1.");
  const waiting = { ...film, answers: [{ ...film.answers[0], places: [], more: 0, more_hits: 0, waits: ["CPU 1 holds it"] }] };
  assert.equal(walkSummary(waiting, folio, 0), "Visits nothing. Counted: walks 1. Now it would have to wait: CPU 1 holds it.");
});

test("a CPU says what it holds, and what it does next or waits for", () => {
  const cpu = { is: "cpu", number: 0, name: "fork", holds: ["a lock"], next: "takes another", waits: true, born: 0 };
  assert.equal(cpuLine(cpu), "holds a lock; has to wait before it takes another");
  assert.equal(cpuLine({ ...cpu, holds: [], waits: false }), "next takes another");
  assert.equal(cpuLine({ ...cpu, holds: [], next: "" }), "has come to its end");
});

test("what is missed says so", () => {
  assert.equal(face([0, 1, "M", 512, 0, 16], new Map()), "→512 missed");
  assert.equal(face([0, 1, "M", 512, 0, 8], new Map()), "→512 will be missed");
});
