// What the theme leaves out on every page: the first visit's colours, and names and tab stops for
// keyboards and screen readers. The page is complete without it.
"use strict";
(() => {
  const root = document.documentElement;
  if (!root.dataset.mode) {
    // A first visit: the reader's own preference, before anything is drawn.
    root.dataset.mode = "auto";
    const dark = window.matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "dark" : "light";
  }

  const BOXES = ".pst-scrollable-table-container, .math-block, figure, .output, pre";

  // A box that scrolls is reached with the tab key and says what it is.
  const label = (box) => {
    const scrolls = box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight;
    if (!scrolls) {
      if (box.matches(".math-block, figure")) box.removeAttribute("tabindex");
      return;
    }
    const table = box.scrollWidth > box.clientWidth && box.querySelector(":scope > table");
    const wide = table && !box.closest(".tag_full-width");
    if (wide) box.classList.add("full-width");
    box.tabIndex = 0;
    if (box.matches("figure")) return; // its caption names it
    const section = box.closest("section");
    const heading = section && section.querySelector("h1, h2, h3");
    const kind = box.matches(".math-block") ? "Equation" : box.querySelector("table") ? "Table" : "Code";
    const where = heading ? `: ${heading.firstChild.textContent.trim()}` : "";
    box.setAttribute("role", "group");
    box.setAttribute("aria-label", `${kind}, scrolls${where}`);
  };

  const start = () => {
    document.querySelectorAll("nav li.has-children > details > summary").forEach((summary) => {
      const link = summary.closest("li").querySelector("a");
      summary.setAttribute("aria-label", `Pages of ${link.textContent.trim()}`);
    });
    document.querySelectorAll(".citation-list > .citation").forEach((entry) => {
      entry.setAttribute("role", "listitem"); // of the list it stands in
    });
    const labelAll = () => document.querySelectorAll(`article :is(${BOXES})`).forEach(label);
    labelAll();
    window.addEventListener("load", labelAll);
    window.addEventListener("resize", labelAll);
  };

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
