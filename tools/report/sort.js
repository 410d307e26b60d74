// Tables marked "sortable" sort by a column when its header is clicked, empty cells last; a table whose rows were
// replaced keeps its order on the event "refilled", and "sorted" says that it is sorted. Without scripts they keep the order that they have.
const collator = new Intl.Collator("en");
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells];
  const order = () => {
    const column = heads.findIndex((head) => head.hasAttribute("aria-sort"));
    if (column < 0) return;
    const down = heads[column].getAttribute("aria-sort") === "descending";
    const key = (row) => row.cells[column].dataset.v ?? row.cells[column].textContent.trim();
    const rows = [...table.tBodies[0].rows].map((row) => [key(row), row]).sort(([x], [y]) => {
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = !isNaN(x) && !isNaN(y) ? x - y : collator.compare(x, y);
      return down ? -order : order;
    });
    table.tBodies[0].append(...rows.map(([, row]) => row));
    table.dispatchEvent(new Event("sorted"));
  };
  for (const head of heads) {
    if (!head.textContent.trim()) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      order();
    });
  }
  table.addEventListener("refilled", order);
}
