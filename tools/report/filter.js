// Above each table marked "filtered": a search by name or code, and a choice for every data-… of its rows that differs.
for (const table of document.querySelectorAll("table.filtered")) {
  const rows = [...table.tBodies[0].rows];
  const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
  const texts = new Map(rows.map((row) => [row, plain(row.cells[0].textContent)]));
  const box = document.createElement("div");
  box.className = "filter";
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "Name or code";
  search.setAttribute("aria-label", "Search languages by name or code");
  box.append(search);
  const choices = ["category", "script", "verdict"].flatMap((key) => {
    const values = [...new Set(rows.map((row) => row.dataset[key] ?? ""))].sort();
    if (values.length < 2) return [];
    const choice = document.createElement("select");
    choice.setAttribute("aria-label", key);
    choice.append(new Option(`any ${key}`, "*"), ...values.map((value) => new Option(value || `no ${key}`, value)));
    box.append(choice);
    return [[key, choice]];
  });
  const count = document.createElement("output");
  box.append(count);
  const show = () => {
    const wanted = plain(search.value.trim());
    let shown = 0;
    for (const row of rows) {
      row.hidden = !texts.get(row).includes(wanted) ||
        choices.some(([key, choice]) => choice.value !== "*" && (row.dataset[key] ?? "") !== choice.value);
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  box.addEventListener("input", show);
  show();
  table.closest(".scroll").before(box);
}
