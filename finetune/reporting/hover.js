"use strict";
// The values of a chart's lines at the step under the pointer. Without it the page lacks nothing else.
const short = (value) =>
  Math.abs(value) >= 1e4 || (value && Math.abs(value) < 1e-3)
    ? value.toExponential(3)
    : String(Number(value.toPrecision(4)));

for (const chart of document.querySelectorAll("svg.chart")) {
  const at = Object.fromEntries(Object.entries(chart.dataset).map(([name, text]) => [name, Number(text)]));
  const readout = chart.parentElement.querySelector(".readout");
  const cross = chart.querySelector(".cross");
  const lines = [...chart.querySelectorAll("polyline[data-name]")].map((line) => ({
    name: line.dataset.name,
    points: [...line.points].map(({ x, y }) => [x, y]),
  }));
  const height = (y) => 1 - y / at.height;
  const value = (y) =>
    at.log ? at.low * (at.high / at.low) ** height(y) : at.low + (at.high - at.low) * height(y);
  const step = (x) => Math.round(at.first + ((at.last - at.first) * x) / at.width);

  chart.addEventListener("pointermove", (event) => {
    const matrix = chart.getScreenCTM().inverse();
    const x = new DOMPoint(event.clientX, event.clientY).matrixTransform(matrix).x;
    const nearest = lines.map(({ name, points }) => ({
      name,
      point: points.reduce((best, point) => (Math.abs(point[0] - x) < Math.abs(best[0] - x) ? point : best)),
    }));
    const closest = nearest.reduce((best, one) =>
      Math.abs(one.point[0] - x) < Math.abs(best.point[0] - x) ? one : best);
    cross.setAttribute("x1", closest.point[0]);
    cross.setAttribute("x2", closest.point[0]);
    cross.style.visibility = "visible";
    const told = nearest.map(({ name, point }) => `${name} ${short(value(point[1]))}`).join(", ");
    readout.textContent = `step ${step(closest.point[0]).toLocaleString("en")}: ${told}`;
  });
  chart.addEventListener("pointerleave", () => {
    cross.style.visibility = "hidden";
    readout.textContent = "";
  });
}
