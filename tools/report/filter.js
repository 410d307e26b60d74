// A search by name or code, and a choice for every key in which the items differ. An item has `text` and `data`, whose
// values are strings, or lists where it has several. A key is [its name, the words for any of its values, the values in
// order if that isn't the alphabet's]. `show` is told which items are left. Returns the box and what shows it anew.
const plain = (text) => text.normalize("NFD").replace(/\p{M}/gu, "").toLowerCase();
const filterBox = (items, keys, show) => {
  const box = document.createElement("div");
  box.className = "filter";
  const search = document.createElement("input");
  search.type = "search";
  search.placeholder = "Name or code";
  search.setAttribute("aria-label", "Search languages by name or code");
  const texts = new Map(items.map((item) => [item, plain(item.text)]));
  const all = (item, key) => [item.data[key] ?? ""].flat();
  const choices = keys.flatMap(([key, any, fixed]) => {
    const found = [...new Set(items.flatMap((item) => all(item, key)))];
    const values = fixed ? [...fixed, ...found.filter((value) => !fixed.includes(value))] : found.sort();
    if (values.length < 2) return [];
    const choice = document.createElement("select");
    choice.name = key;
    choice.setAttribute("aria-label", key);
    choice.append(new Option(any, "*"), ...values.map((value) => new Option(value || `${key} not known`, value)));
    return [[key, choice]];
  });
  const count = document.createElement("output");
  box.append(search, ...choices.map(([, choice]) => choice), count);
  const update = () => {
    const wanted = plain(search.value.trim());
    const left = items.filter((item) => texts.get(item).includes(wanted) &&
      choices.every(([key, choice]) => choice.value === "*" || all(item, key).includes(choice.value)));
    count.textContent = `${left.length} of ${items.length}`;
    show(new Set(left));
  };
  box.addEventListener("input", update);
  return {box, update};
};
for (const table of document.querySelectorAll("table.filtered")) {
  const items = [...table.tBodies[0].rows].map((row) => ({text: row.cells[0].textContent, data: row.dataset, row}));
  const show = (left) => items.forEach((item) => { item.row.hidden = !left.has(item); });
  const {box, update} = filterBox(items, ["category", "script", "verdict"].map((key) => [key, `any ${key}`]), show);
  update();
  table.closest(".scroll").before(box);
}
