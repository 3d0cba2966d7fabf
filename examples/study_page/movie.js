// What a layer is given, recorded in real training: the histogram of one unit's inputs at a step, for each network.
"use strict";
{
  const root = document.getElementById("movie");
  const data = JSON.parse(document.getElementById("movie-data").textContent);
  const find = (name) => root.querySelector(`[data-id="${name}"]`);
  const step = find("step");
  const rate = find("rate");
  const number = (value, digits) => (value === null ? "diverged" : value.toFixed(digits).replace("-", "\u2212"));

  function outline(counts) {
    const total = counts.reduce((a, b) => a + b, 0);
    const width = 240 / counts.length;
    let path = "M0 100";
    counts.forEach((count, i) => {
      const y = (100 - 95 * Math.min(1, (4 * count) / total)).toFixed(2);
      path += `L${(i * width).toFixed(2)} ${y}L${((i + 1) * width).toFixed(2)} ${y}`;
    });
    return `${path}L240 100Z`;
  }

  function update() {
    const [s, r] = [Number(step.value), Number(rate.value)];
    find("step-shown").textContent = String(data.step[s]);
    find("rate-shown").textContent = String(data.rates[r]);
    for (const name of data.arms) {
      const of = data[name];
      const [now, before] = [of.counts[r][s], of.counts[r][Math.max(0, s - 1)]];
      find(`${name}-now`).setAttribute("d", outline(now));
      find(`${name}-before`).setAttribute("d", outline(before));
      const [mean, deviation] = [of.mean[r][s], of.deviation[r][s]];
      const earlier = s ? of.mean[r][s - 1] : null;
      const wide = s ? of.deviation[r][s - 1] : null;
      const moved = mean === null || earlier === null || !wide ? null : Math.abs(mean - earlier) / wide;
      find(`${name}-mean`).textContent = number(mean, 3);
      find(`${name}-deviation`).textContent = number(deviation, 3);
      find(`${name}-moved`).textContent = moved === null ? "\u2013" : number(moved, 3);
      find(`${name}-accuracy`).textContent = number(100 * of.accuracy[r][s], 1);
    }
  }

  let timer = 0;
  const play = find("play");
  play.addEventListener("click", () => {
    const stop = () => { clearInterval(timer); timer = 0; play.textContent = "play"; };
    if (timer) { stop(); return; }
    if (Number(step.value) === data.step.length - 1) step.value = "0";
    play.textContent = "stop";
    timer = setInterval(() => {
      step.value = String(Number(step.value) + 1);
      update();
      if (Number(step.value) === data.step.length - 1) stop();
    }, 120);
  });
  root.addEventListener("input", update);
  update();
}
