"use strict";
// A click on a column's name sorts by it, a second click reverses the order; unknown values stay last.
for (const table of document.querySelectorAll("table")) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const isNumber = head.classList.contains("number");
    const first = isNumber ? "descending" : "ascending", second = isNumber ? "ascending" : "descending";
    const order = head.getAttribute("aria-sort") === first ? second : first;
    heads.forEach((other) => other.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", order);
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => row.cells[column].dataset.value;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      return sign * (isNumber ? x - y : x.localeCompare(y, undefined, { numeric: true }));
    });
    table.tBodies[0].append(...rows);
  }));
}

// Words in the filter, or chosen rows, decide which runs the page shows; a point of several runs needs one of them.
const filter = document.querySelector("#filter");
if (filter) {
  const only = document.querySelector("#chosen"), count = document.querySelector("#count");
  const rows = [...document.querySelectorAll("table")][0].tBodies[0].rows;
  const update = () => {
    const words = filter.value.toLowerCase().split(/\s+/);
    const shown = new Set();
    for (const row of rows) {
      const chosen = !only.checked || row.querySelector("input").checked;
      const text = row.dataset.text.toLowerCase();
      if (chosen && words.every((word) => text.includes(word))) shown.add(row.dataset.run);
    }
    for (const part of document.querySelectorAll("[data-run]")) {
      part.classList.toggle("off", !part.dataset.run.split(" ").some((run) => shown.has(run)));
    }
    count.textContent = `${shown.size} of ${rows.length} runs`;
  };
  for (const part of [filter, only]) part.addEventListener("input", update);
  for (const row of rows) row.querySelector("input").addEventListener("input", update);
}
