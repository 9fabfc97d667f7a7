// What pages of experiments share. `data` has mode_order, modes (title, alone) and prompts, each with
// the completions of every mode.
// Elements are made by hand and texts set as text: nothing of the data is ever read as HTML.
function make(space, name, attributes, children) {
  const element = space ? document.createElementNS(space, name) : document.createElement(name);
  for (const key in attributes || {}) element.setAttribute(key, attributes[key]);
  for (const child of [].concat(children === undefined ? [] : children)) {
    if (child !== null) element.append(child);
  }
  return element;
}
const h = (name, attributes, children) => make(null, name, attributes, children);
const s = (name, attributes, children) => make("http://www.w3.org/2000/svg", name, attributes, children);
const color = mode => "var(--" + mode + ")";
const round = (x, digits) => x === null || x === undefined ? "–" : Number(x).toFixed(digits);
const dot = mode => h("span", { class: "dot", style: "background:" + color(mode) });
const modes = data.mode_order;
const batched = modes.filter(mode => !data.modes[mode].alone);
const title = mode => data.modes[mode].title;

function legend(which) {
  return h("div", { class: "legend" }, which.map(mode => h("span", {}, [dot(mode), title(mode)])));
}

function niceStep(max, count) {
  const rough = max / count, power = Math.pow(10, Math.floor(Math.log10(rough)));
  return power * [1, 2, 5, 10].find(m => m * power >= rough);
}

// Groups of horizontal bars, one group a prompt; whole numbers from 1 on.
function perPromptChart(field) {
  const bar = 9, group = batched.length * bar + 12, left = 150, width = 460, right = 34;
  const values = data.prompts.map(p => batched.map(mode => p.modes[mode][field]));
  const max = Math.max(2, ...values.flat()), height = values.length * group + 26;
  const x = v => left + (width - left - right) * v / max;
  const parts = [];
  const step = Math.max(1, Math.round(niceStep(max, 5)));
  for (let v = 0; v <= max; v += step) {
    parts.push(s("line", { x1: x(v), x2: x(v), y1: 0, y2: height - 20, stroke: "var(--line)" }));
    parts.push(s("text", { x: x(v), y: height - 6, "text-anchor": "middle" }, String(v)));
  }
  values.forEach((row, i) => {
    const top = i * group + 5, name = data.prompts[i].prompt;
    const label = s("text", { x: left - 8, y: top + group / 2 - 2, "text-anchor": "end" },
      name.length > 20 ? name.slice(0, 19) + "…" : name);
    label.append(s("title", {}, name));
    parts.push(label);
    row.forEach((v, j) => {
      const rect = s("rect", { x: left, y: top + j * bar, width: Math.max(1, x(v) - left), height: bar - 2, rx: 1.5,
        fill: color(batched[j]) });
      rect.append(s("title", {}, title(batched[j]) + ": " + v));
      parts.push(rect);
      parts.push(s("text", { x: x(v) + 4, y: top + j * bar + 7, class: "value", style: "font-size:8px" }, String(v)));
    });
  });
  return s("svg", { viewBox: "0 0 " + width + " " + height, role: "img" }, parts);
}

// The text with its part after the split marked; the split is given in bytes of UTF-8.
function answer(completion) {
  const parts = [h("span", { class: "times" }, completion.count + "×, " + completion.hashes.length +
    (completion.hashes.length === 1 ? " logit hash" : " different logit hashes") +
    (completion.split_token === null ? "" : ", splits at token " + completion.split_token))];
  if (completion.split_token === null) {
    parts.push(completion.text);
  } else {
    const bytes = new TextEncoder().encode(completion.text), decode = part => new TextDecoder().decode(part);
    parts.push(decode(bytes.slice(0, completion.split_byte)), h("span", { class: "split" }, "▸"),
      h("mark", {}, decode(bytes.slice(completion.split_byte)) || "(ends here)"));
  }
  return h("div", { class: "answer" }, parts);
}

function prompt(entry, open) {
  const counts = modes.map(mode => {
    const m = entry.modes[mode];
    return title(mode) + ": " + m.unique_completions + (m.unique_completions === 1 ? " text, " : " texts, ") +
      m.unique_logit_hashes + (m.unique_logit_hashes === 1 ? " hash" : " hashes");
  }).join("  ·  ");
  const columns = modes.map(mode => h("div", {}, [
    h("h4", { style: "border-color:" + color(mode) }, title(mode)),
    ...entry.modes[mode].completions.map(answer)]));
  const details = h("details", { class: "prompt" }, [
    h("summary", {}, [entry.prompt, h("span", { class: "counts" }, counts)]), h("div", { class: "columns" }, columns)]);
  details.open = open;
  return details;
}

function card(figure, what, mode) {
  return h("div", { class: "card" }, [
    h("div", { class: "figure", style: mode ? "color:" + color(mode) : "" }, figure), h("div", { class: "what" }, what)]);
}

function chart(name, body, which, note) {
  return h("div", { class: "card chart" }, [h("h3", {}, name), legend(which), body,
    note ? h("p", { class: "small soft" }, note) : null]);
}
