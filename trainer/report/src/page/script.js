"use strict";
// Only for reading off values and for turning the samples' pages: everything else is there without a script.
const digits = (value) => {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-3 || size >= 1e6) return Number(value.toPrecision(4)).toExponential().replace("e+", "e");
  return String(Number(value.toPrecision(4)));
};
const units = {
  number: digits,
  steps: digits,
  seconds: (value) => value !== 0 && Math.abs(value) < 1 ? digits(1e3 * value) + " ms" : digits(value) + " s",
  share: (value) => digits(100 * value) + " %",
  bytes: (value) => {
    const names = ["B", "KiB", "MiB", "GiB", "TiB"];
    let power = 0;
    while (power < names.length - 1 && Math.abs(value) >= 1024 ** (power + 1)) power++;
    return digits(value / 1024 ** power) + " " + names[power];
  },
};

for (const figure of document.querySelectorAll(".chart")) {
  const svg = figure.querySelector("svg"), cursor = figure.querySelector(".cursor"), readout = figure.querySelector(".readout");
  const [first, last, left, right, width] = JSON.parse(figure.dataset.frame);
  const curves = JSON.parse(figure.dataset.curves), shown = units[figure.dataset.unit], atRest = [...readout.childNodes];
  const steps = [...new Set(curves.flatMap((curve) => curve.slice(2).map((point) => point[0])))].sort((a, b) => a - b);
  let at = -1;

  const nearest = (list, step, of) => {
    let low = 0, high = list.length - 1;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (of(list[middle]) < step) low = middle + 1; else high = middle;
    }
    return low > 0 && step - of(list[low - 1]) < of(list[low]) - step ? low - 1 : low;
  };
  const read = (index) => {
    at = Math.max(0, Math.min(steps.length - 1, index));
    const step = steps[at], x = last > first ? left + (step - first) / (last - first) * (right - left) : (left + right) / 2;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    readout.replaceChildren("step " + step);
    for (const [name, label, ...points] of curves) {
      const [of, value, average] = points[nearest(points, step, (point) => point[0])];
      // A run that is not there yet, or not any more, has nothing to say at this step.
      if (step < points[0][0] || step > points[points.length - 1][0]) continue;
      const span = document.createElement("span");
      span.className = name;
      const texts = [value, average].filter((number) => number !== undefined).map((number) => number === null ? "none" : shown(number));
      span.textContent = label + (texts.length > 1 ? `${texts[0]} (average ${texts[1]})` : texts[0]);
      span.title = "step " + of;
      readout.append(span);
    }
  };
  const leave = () => {
    at = -1;
    cursor.setAttribute("visibility", "hidden");
    readout.replaceChildren(...atRest);
  };
  const point = (event) => {
    const box = svg.getBoundingClientRect(), x = (event.clientX - box.left) / box.width * width;
    const step = first + (x - left) / (right - left) * (last - first);
    read(nearest(steps, step, (step) => step));
  };
  svg.addEventListener("pointermove", point);
  svg.addEventListener("pointerdown", point);
  svg.addEventListener("pointerleave", leave);
  svg.addEventListener("blur", leave);
  svg.addEventListener("keydown", (event) => {
    const far = Math.ceil(steps.length / 10);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, PageDown: at - far, PageUp: at + far, Home: 0, End: steps.length - 1 }[event.key];
    if (event.key === "Escape") leave();
    if (to === undefined) return;
    event.preventDefault();
    readout.setAttribute("aria-live", "polite");
    read(at < 0 && event.key === "ArrowLeft" ? steps.length - 1 : to);
  });
}

// Says how to see all columns only where some are out of sight.
const hint = () => {
  for (const row of document.querySelectorAll(".row")) row.parentElement.querySelector(".hint").hidden = row.scrollWidth <= row.clientWidth;
};
addEventListener("resize", hint);

const slider = document.querySelector("#step");
if (slider) {
  const steps = slider.dataset.steps.split(" ").map(Number), output = document.querySelector(".slider output");
  const rows = [...document.querySelectorAll(".row")].map((row) => [...row.children]);
  const turn = () => {
    const step = steps[slider.value];
    output.textContent = step;
    slider.setAttribute("aria-valuetext", "step " + step);
    for (const figures of rows) {
      // Of each run the newest grid that it had by then, and its first before.
      const current = figures.findLast((figure) => Number(figure.dataset.step) <= step) ?? figures[0];
      for (const figure of figures) figure.hidden = figure !== current;
    }
    hint();
  };
  document.querySelector(".slider").hidden = false;
  slider.addEventListener("input", turn);
  turn();
}
