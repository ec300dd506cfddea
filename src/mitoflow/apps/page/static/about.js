// What the first screen says of the model.

export function element(tag, text = "", attributes = {}) {
  const made = Object.assign(document.createElement(tag), attributes);
  if (text) made.textContent = text;
  return made;
}

const percent = (share) => `${(100 * share).toFixed(0)} %`;

export function describe(section, model) {
  section.replaceChildren(element("h2", "What the model knows"));
  if (model.warning) section.append(element("p", model.warning, { className: "warning" }));
  section.append(element("p", `${model.name}. ${model.trained_on ? `Trained on ${model.trained_on}` : "Nobody recorded what it was trained on."}`));
  if (model.sets.length) section.append(...scores(model));
  else section.append(element("p", "It was not evaluated: nobody knows how good it is.", { className: "warning" }));
  if (model.calibration) {
    const { stacks, error } = model.calibration;
    section.append(element("p", `For your stack the page says what Dice to expect, as measured on ${stacks} stacks of tissue that such models had not seen; four of five were within ${error.toFixed(2)}.`));
  }
  if (model.limits.length) {
    const list = element("ul");
    list.append(...model.limits.map((each) => element("li", each)));
    section.append(folded("Limits", list));
  }
  const origin = element("dl");
  for (const [key, value] of Object.entries(model.lineage)) origin.append(element("dt", key), element("dd", value));
  section.append(folded("Where it comes from", origin));
}

function scores(model) {
  const table = element("table");
  const head = element("tr");
  head.append(...["Test set", "Dice", "", "slices"].map((each) => element("th", each)));
  table.append(head);
  for (const each of [...model.sets].sort((a, b) => a.dice - b.dice)) {
    const row = element("tr");
    const bar = element("td", "", { className: "bar" });
    bar.append(element("meter", "", { min: 0, max: 1, low: 0.6, high: 0.8, optimum: 1, value: each.dice, title: each.dice.toFixed(2) }));
    row.append(element("td", each.name || "test part"), element("td", each.dice.toFixed(2)), bar, element("td", `${each.slices}`));
    table.append(row);
  }
  const errors = `On slices that it has not seen, it misses ${percent(model.missed)} of the pixels of mitochondria, and ${percent(model.wrong)} of what it marks is something else. Other tissue is harder.`;
  return [element("p", errors), table];
}

function folded(title, content) {
  const details = element("details");
  details.append(element("summary", title), content);
  return details;
}
