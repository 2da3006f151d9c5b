"use strict";
// The values of a chart's lines at the step under the pointer. Without it the page lacks nothing else. It hears
// the document, so that a chart that takes another's place has it too.
const short = (value) =>
  Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3)
    ? value.toExponential(3)
    : String(Number(value.toPrecision(4)));

const linesOf = (chart) =>
  [...chart.querySelectorAll("polyline[data-name]")].map((line) => ({
    name: line.dataset.name,
    points: [...line.points].map(({ x, y }) => [x, y]),
  }));
const known = new WeakMap();

function tell(chart, event) {
  if (!known.has(chart)) known.set(chart, linesOf(chart));
  const at = Object.fromEntries(Object.entries(chart.dataset).map(([name, text]) => [name, Number(text)]));
  const height = (y) => 1 - y / at.height;
  const value = (y) =>
    at.log ? at.low * (at.high / at.low) ** height(y) : at.low + (at.high - at.low) * height(y);
  const step = (x) => Math.round(at.first + ((at.last - at.first) * x) / at.width);

  const matrix = chart.getScreenCTM().inverse();
  const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix).x;
  const nearest = known.get(chart).map(({ name, points }) => ({
    name,
    point: points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best)),
  }));
  const closest = nearest.reduce((best, one) =>
    Math.abs(one.point[0] - x) < Math.abs(best.point[0] - x) ? one : best);
  const cross = chart.querySelector(".cross");
  cross.setAttribute("x1", closest.point[0]);
  cross.setAttribute("x2", closest.point[0]);
  cross.style.visibility = "visible";
  const told = nearest.map(({ name, point }) => `${name} ${short(value(point[1]))}`).join(", ");
  chart.parentElement.querySelector(".readout").textContent =
    `step ${step(closest.point[0]).toLocaleString("en")}: ${told}`;
}

function forget(chart) {
  chart.querySelector(".cross").style.visibility = "hidden";
  chart.parentElement.querySelector(".readout").textContent = "";
}

let last = null;
document.addEventListener("pointermove", (event) => {
  const chart = event.target.closest?.("svg.chart") ?? null;
  if (last && last !== chart) forget(last);
  if (chart) tell(chart, event);
  last = chart;
});
