"use strict";
// Curves: the value under the pointer.
for (const svg of document.querySelectorAll("svg[data-marks]")) {
  const points = svg.dataset.marks.split(";").map((mark) => mark.match(/^([^,]*),([^,]*),([^,]*),(.*)$/).slice(1));
  const cursor = svg.querySelector(".cursor"), output = svg.parentNode.querySelector("output");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) * 320 / box.width;
    const near = points.reduce((best, point) => Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best);
    cursor.setAttribute("visibility", "visible");
    const line = cursor.querySelector("line"), dot = cursor.querySelector("circle");
    for (const [name, value] of [["x1", near[0]], ["x2", near[0]], ["y1", 8], ["y2", 102]]) line.setAttribute(name, value);
    dot.setAttribute("cx", near[0]); dot.setAttribute("cy", near[1]);
    output.textContent = `step ${near[2]}: ${near[3]}`;
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); output.textContent = output.dataset.rest; });
}

// Rollouts: every token coloured by one of its figures.
const DATA = JSON.parse(document.getElementById("rollouts").textContent);
const LOGPROBS = ["policy_logprobs", "teacher_logprobs", "rollout_logprobs"];
const mix = (from, to, share) => `rgb(${from.map((part, index) => Math.round(part + (to[index] - part) * Math.min(1, share))).join(",")})`;
const WHITE = [255, 255, 255], RED = [226, 96, 90], BLUE = [88, 150, 222], AMBER = [240, 170, 60], GREY = [205, 208, 212], GREEN = [150, 208, 170];
const css = (rgb) => mix(rgb, rgb, 0);
const diverging = (value, reach) => mix(WHITE, value < 0 ? RED : BLUE, reach ? Math.abs(value) / reach : 0);

function valueOf(row, mode, index) {
  if (mode === "log_ratio") return row.teacher_logprobs && row.policy_logprobs ? row.teacher_logprobs[index] - row.policy_logprobs[index] : null;
  if (mode === "advantage" || mode === "staleness") return row[mode];
  return row[mode] ? row[mode][index] : null;
}
// The scale is the run's, not the step's: colours of two steps can be compared.
function reachOf(mode) {
  const values = [];
  for (const rows of Object.values(DATA)) for (const row of rows) row.tokens.forEach((_, index) => {
    const value = valueOf(row, mode, index);
    if (value !== null) values.push(Math.abs(value));
  });
  values.sort((a, b) => a - b);
  return values.length ? values[Math.floor(0.99 * (values.length - 1))] : 0; // a single outlier must not bleach the rest
}
function colour(row, mode, index, reach) {
  if (mode === "mask") return css(!row.trained ? GREY : row.distilled ? GREEN : AMBER);
  const value = valueOf(row, mode, index);
  if (value === null) return css(GREY);
  if (LOGPROBS.includes(mode)) return mix(WHITE, RED, reach ? -value / reach : 0);
  if (mode === "staleness") return mix(WHITE, AMBER, reach ? value / reach : 0);
  return diverging(value, reach);
}
function legend(mode, reach) {
  const chip = (rgb, text) => `<i class="chip" style="background:${css(rgb)}"></i>${text}`;
  if (mode === "mask") return chip(GREEN, "trained and distilled") + chip(AMBER, "trained only") + chip(GREY, "not trained");
  const bar = (...colours) => `<i style="background:linear-gradient(90deg,${colours.map(css)})"></i>`, end = Number(reach.toPrecision(3));
  if (LOGPROBS.includes(mode)) return `0 ${bar(WHITE, RED)} -${end} nats and less likely`;
  if (mode === "staleness") return `0 ${bar(WHITE, AMBER)} ${end} updates`;
  return `-${end} ${bar(RED, WHITE, BLUE)} ${end}${mode === "advantage" ? "" : " nats"}`;
}
const shown = (text) => text.replace(/\n/g, "\u21b5\n").replace(/\t/g, "\u21e5\t");
function element(kind, name, text) {
  const made = document.createElement(kind);
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}
function facts(row) {
  const box = element("div", "facts"), score = row.score === null ? "abstained" : `score ${row.score}`;
  box.append(element("b", row.score === null ? "" : row.score >= 1 ? "good" : "bad", score));
  const lines = [`advantage ${row.advantage.toFixed(3)}`, `${row.tokens.length} tokens, ${row.finish_reason}`];
  if (row.parsed !== null && row.parsed !== undefined) lines.push(`read as ${String(row.parsed).slice(0, 40)}`);
  if (row.reason) lines.push(row.reason);
  lines.push(`version ${row.min_version === row.max_version ? row.min_version : row.min_version + " to " + row.max_version}, staleness ${row.staleness}`);
  for (const line of lines) box.append(element("div", "", line));
  return box;
}
function tipText(row, index) {
  const figure = (name, list) => list ? `\n${name.padEnd(9)}${list[index].toFixed(4)}` : "";
  return `${JSON.stringify(row.tokens[index])}  id ${row.ids[index]}  at ${index}` + figure("policy", row.policy_logprobs) + figure("rollout", row.rollout_logprobs) +
    figure("teacher", row.teacher_logprobs) + (row.gap ? `\ngap      ${row.gap[index].toExponential(1)}` : "");
}
const tip = element("div"); tip.id = "tip"; tip.hidden = true; document.body.append(tip);
function tokens(row, mode, reach) {
  const box = element("div", "tokens");
  row.tokens.forEach((token, index) => {
    const span = element("span", /^<.*>$/.test(token) ? "special" : "", shown(token));
    span.style.background = colour(row, mode, index, reach);
    span.addEventListener("pointerenter", (event) => {
      tip.textContent = tipText(row, index); tip.hidden = false;
      tip.style.left = `${Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8)}px`;
      tip.style.top = `${event.clientY + 18 + tip.offsetHeight > innerHeight ? event.clientY - tip.offsetHeight - 10 : event.clientY + 18}px`;
    });
    span.addEventListener("pointerleave", () => { tip.hidden = true; });
    box.append(span);
  });
  return box;
}
const stepBox = document.getElementById("step"), modeBox = document.getElementById("mode");
function draw() {
  const mode = modeBox.value, reach = reachOf(mode), groups = new Map();
  for (const row of DATA[stepBox.value]) { if (!groups.has(row.group)) groups.set(row.group, []); groups.get(row.group).push(row); }
  document.getElementById("scale").innerHTML = legend(mode, reach);
  document.getElementById("groups").replaceChildren(...[...groups.values()].map((rows) => {
    const box = element("div", "group"), right = rows.filter((row) => row.score >= 1).length;
    box.append(element("p", "prompt", `${rows[0].prompt}\n${rows[0].id}   answer: ${JSON.stringify(rows[0].answer)}   right: ${right} of ${rows.length} shown`));
    for (const row of rows) { const line = element("div", "rollout"); line.append(facts(row), tokens(row, mode, reach)); box.append(line); }
    return box;
  }));
}
if (stepBox) {
  stepBox.value = Object.keys(DATA).at(-1);
  const has = (mode) => Object.values(DATA).flat().some((row) => mode === "mask" || row.tokens.some((_, index) => valueOf(row, mode, index) !== null));
  for (const option of [...modeBox.options]) if (!has(option.value)) option.remove();
  if (has("log_ratio")) modeBox.value = "log_ratio";
  stepBox.addEventListener("change", draw); modeBox.addEventListener("change", draw); draw();
}
