"""The script of the HTML report: sorts tables, filters cases, unfolds what a link leads to; without it all is shown."""

from base64 import b64encode
from hashlib import sha256

__all__ = ["SCRIPT", "SCRIPT_HASH"]

SCRIPT = """
(() => {
  const all = (what, within = document) => [...within.querySelectorAll(what)];
  const value = (row, column) => {
    const cell = row.cells[column], number = cell.dataset.v;
    return number === undefined ? cell.textContent.trim() : Number(number);
  };
  for (const table of all("table.sort")) {
    const heads = all("thead th", table);
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.append(...head.childNodes);
      head.append(button);
      button.onclick = () => {
        const down = head.getAttribute("aria-sort") !== "descending";
        heads.forEach(other => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const order = (a, b) => (a < b ? -1 : a > b ? 1 : 0) * (down ? -1 : 1);
        const rows = all("tbody tr", table).sort((a, b) => order(value(a, column), value(b, column)));
        table.tBodies[0].append(...rows);
      };
    });
  }
  for (const form of all("form.filter")) {
    form.hidden = false;
    form.onsubmit = () => false;
    form.oninput = () => {
      const words = form.elements.words.value.toLowerCase(), failing = form.elements.failing.checked;
      let shown = 0;
      for (const item of all("[data-case]", form.parentElement)) {
        item.hidden = !item.dataset.case.toLowerCase().includes(words) || (failing && item.dataset.verdict === "match");
        shown += !item.hidden && item.tagName === "TR";
      }
      form.elements.count.value = `${shown} cases`;
    };
  }
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    const fold = target && target.closest("details");
    if (fold) { fold.hidden = false; fold.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", reveal);
  reveal();
})();
"""
SCRIPT_HASH = "sha256-" + b64encode(sha256(SCRIPT.encode()).digest()).decode()
