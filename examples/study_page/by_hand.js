// Batch norm of one feature, by hand: what the reader types, every intermediate value and its arithmetic.
"use strict";
{
  const root = document.getElementById("by-hand");
  const find = (name) => root.querySelector(`[data-id="${name}"]`);
  const inputs = [0, 1, 2, 3].map((i) => find(`x${i}`));

  const sum = (values) => values.reduce((a, b) => a + b, 0);
  const mean = (values) => sum(values) / values.length;

  // Short, as one writes by hand, and with a real minus sign.
  function short(value) {
    if (!Number.isFinite(value)) return "not a number";
    const rounded = Math.abs(value) >= 1e-3 || value === 0 ? Number(value.toFixed(4)) : Number(value.toPrecision(3));
    return String(Object.is(rounded, -0) ? 0 : rounded).replace("-", "\u2212");
  }
  const list = (values) => values.map(short).join(", ");
  const signed = (value) => (value < 0 ? `(${short(value)})` : short(value));

  function show(name, value, arithmetic) {
    const row = find(name);
    row.querySelector("output").textContent = Array.isArray(value) ? list(value) : short(value);
    row.querySelector("output").dataset.value = JSON.stringify(value);
    row.querySelector(".how").textContent = arithmetic;
  }

  function place(name, values) {
    root.querySelectorAll(`[data-dots="${name}"] circle`).forEach((dot, i) => {
      dot.style.display = i < values.length ? "" : "none";
      if (i < values.length) dot.setAttribute("cx", String(300 + 30 * Math.max(-9.5, Math.min(9.5, values[i]))));
    });
  }

  function update() {
    const size = Number(root.querySelector('[name="size"]:checked').value);
    const training = root.querySelector('[name="mode"]:checked').value === "training";
    const number = (name) => Number(find(name).value);
    const [epsilon, scale, bias, momentum, steps] = ["epsilon", "scale", "bias", "momentum", "steps"].map(number);
    inputs.forEach((input, i) => { input.disabled = i >= size; });
    const x = inputs.slice(0, size).map((input) => Number(input.value));
    find("steps-shown").textContent = String(steps);

    const mu = mean(x);
    const variance = mean(x.map((v) => (v - mu) ** 2));
    show("mean", mu, `(${x.map(signed).join(" + ")}) / ${size}`);
    show("var", variance, `(${x.map((v) => `${signed(v - mu)}²`).join(" + ")}) / ${size}, the distances from the mean`);

    const kept = momentum ** steps;
    const runningMean = (1 - kept) * mu;
    const runningVar = kept + (1 - kept) * variance;
    const again = `after ${steps} training steps on this batch: ${short(momentum)}^${steps} = ${short(kept)}`;
    show("running-mean", runningMean, `${again} of the first value 0, the rest of the batch's mean`);
    show("running-var", runningVar, `${again} of the first value 1, the rest of the batch's variance`);

    const [m, v, whose] = training ? [mu, variance, "the batch's"] : [runningMean, runningVar, "the running"];
    const deviation = Math.sqrt(v + epsilon);
    const normalized = x.map((value) => (value - m) / deviation);
    const y = normalized.map((value) => scale * value + bias);
    show("deviation", deviation, `square root of ${short(v)} + ${short(epsilon)}, from ${whose} variance`);
    show("normalized", normalized, `(x \u2212 ${signed(m)}) / ${short(deviation)}, with ${whose} mean`);
    show("y", y, `${short(scale)} × normalized + ${signed(bias)}`);
    place("x", x);
    place("normalized", normalized);
    place("y", y);

    let note = "";
    if (training && size === 1) {
      note = "A batch of one is its own mean: whatever x is, what comes out is the bias, and the layers below learn nothing.";
    } else if (training && size === 2) {
      note = "Two values always become one 1 below and one 1 above, unless they are (nearly) the same: only which is larger is left.";
    } else if (!training && steps < 3 / (1 - momentum)) {
      note = "So few steps leave much of the first values 0 and 1 in the running averages: they are not yet those of the data.";
    } else if (!training) {
      note = "In evaluation mode each value is treated by itself: change one, and the other outputs stay as they are.";
    }
    find("note").textContent = note;
  }

  root.addEventListener("input", update);
  update();
}
