// A click on a heading sorts by its column; another click turns the order round.
for (const head of document.querySelectorAll("thead th")) {
  head.firstChild.addEventListener("click", () => {
    const ascending = head.getAttribute("aria-sort") !== "ascending";
    for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", ascending ? "ascending" : "descending");
    const key = (row) => {
      const cell = row.children[head.cellIndex];
      return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
    };
    const compare = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b));
    const body = document.querySelector("tbody");
    const rows = [...body.rows].sort((a, b) => compare(key(a), key(b)));
    body.append(...(ascending ? rows : rows.reverse()));
  });
}
