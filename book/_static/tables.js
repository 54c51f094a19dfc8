// Search and sort for the tables that a cell tagged "sortable" shows. No dependency; the page is
// complete without it.
"use strict";
(() => {
  const NONE = /^[–—-]?$/; // a dash, or nothing
  const NUMBER = /^=?\s*([+−-]?\d[\d,]*(?:\.\d+)?)/;

  const text = (cell) => (cell ? cell.textContent.trim() : "");

  const number = (value) => {
    const found = NUMBER.exec(value);
    return found ? Number(found[1].replace(/,/g, "").replace("−", "-")) : NaN;
  };

  // Below zero where `first` stands before `second`; empty cells are last in either direction.
  const compare = (first, second, numeric, sign) => {
    if (NONE.test(first) || NONE.test(second)) {
      return Number(NONE.test(first)) - Number(NONE.test(second));
    }
    const order = numeric ? number(first) - number(second) : first.localeCompare(second);
    return sign * order;
  };

  const sort = (body, column, sign) => {
    const rows = Array.from(body.rows);
    const filled = rows.map((row) => text(row.cells[column])).filter((value) => !NONE.test(value));
    const numeric = filled.every((value) => !Number.isNaN(number(value)));
    const value = (row) => text(row.cells[column]);
    rows.sort((a, b) => compare(value(a), value(b), numeric, sign)); // stable
    rows.forEach((row) => body.appendChild(row));
  };

  const addSort = (table) => {
    const heads = Array.from(table.tHead.rows[0].cells);
    heads.forEach((head, column) => {
      if (!text(head)) return;
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      // Sphinx wraps a heading's text in a paragraph, which may not stand in a button.
      const inner = head.querySelector("p") || head;
      while (inner.firstChild) button.appendChild(inner.firstChild);
      head.textContent = "";
      head.appendChild(button);
      head.setAttribute("aria-sort", "none");
      button.addEventListener("click", () => {
        const up = head.getAttribute("aria-sort") !== "ascending";
        heads.forEach((other) => other.hasAttribute("aria-sort") && other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", up ? "ascending" : "descending");
        sort(table.tBodies[0], column, up ? 1 : -1);
      });
    });
  };

  const addSearch = (box, tables) => {
    const label = document.createElement("label");
    label.className = "search";
    label.appendChild(document.createTextNode("Search this table "));
    const field = document.createElement("input");
    field.type = "search";
    const count = document.createElement("span");
    count.setAttribute("role", "status");
    label.appendChild(field);
    box.insertBefore(count, box.firstChild);
    box.insertBefore(label, box.firstChild);
    field.addEventListener("input", () => {
      const words = field.value.toLocaleLowerCase().split(/\s+/).filter(Boolean);
      const rows = tables.flatMap((table) => Array.from(table.tBodies[0].rows));
      rows.forEach((row) => {
        const content = row.textContent.toLocaleLowerCase();
        row.hidden = !words.every((word) => content.includes(word));
      });
      const shown = rows.filter((row) => !row.hidden).length;
      count.textContent = words.length ? ` ${shown} of ${rows.length} rows` : "";
    });
  };

  const start = () => {
    document.querySelectorAll(".tag_sortable .cell_output").forEach((box) => {
      const tables = Array.from(box.querySelectorAll("table")).filter(
        (table) => table.tHead && table.tBodies.length,
      );
      if (!tables.length) return;
      box.classList.add("sortable");
      tables.forEach(addSort);
      addSearch(box, tables);
    });
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
