// Chart of likeness (PSNR) and latency over the last three minutes.

const POINTS = 180; // one a second
const [LEFT, RIGHT, TOP, BOTTOM] = [26, 268, 8, 84]; // bounds of the plot in the 300 x 100 units of the chart

/** Axis limits [low, high] for `values` but the largest part `spikes` of them: multiples of `step`, `least` apart at least. */
function range(values, step, least, spikes) {
  const sorted = [...values].sort((a, b) => a - b);
  const low = step * Math.floor(sorted[0] / step);
  const high = step * Math.ceil(sorted[Math.floor((1 - spikes) * (sorted.length - 1))] / step);
  return [low, Math.max(high, low + least)];
}

/** SVG path through `values` (null: a gap), the newest at the right, scaled to [low, high]. */
function line(values, [low, high]) {
  const x = (i) => RIGHT - ((RIGHT - LEFT) * (values.length - 1 - i)) / (POINTS - 1);
  const y = (value) => BOTTOM - ((BOTTOM - TOP) * (Math.min(value, high) - low)) / (high - low);
  let path = "";
  values.forEach((value, i) => {
    if (value === null) return;
    path += `${i === 0 || values[i - 1] === null ? "M" : "L"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
  });
  return path;
}

/** Draws two curves into `svg`, which has a path and two labels (low, high) for each of `psnr` and `latency`. */
export class Chart {
  constructor(svg) {
    this.svg = svg;
    this.psnr = [];
    this.latency = [];
  }

  /** Add the values of one second: `psnr` in dB, `latency` in ms; unknown values leave a gap. */
  add(psnr, latency) {
    for (const [values, value] of [[this.psnr, psnr], [this.latency, latency]]) {
      values.push(Number.isFinite(value) ? value : null);
      if (values.length > POINTS) values.shift();
    }
    const known = (values) => values.filter((value) => value !== null);
    this.draw("psnr", this.psnr, range(known(this.psnr), 2, 4, 0));
    this.draw("latency", this.latency, range([0, ...known(this.latency)], 20, 40, 0.05));
  }

  draw(name, values, bounds) {
    const shown = values.some((value) => value !== null);
    const part = (selector) => this.svg.querySelector(`.${name}${selector}`);
    part("").setAttribute("d", shown ? line(values, bounds) : "");
    part("-low").textContent = shown ? bounds[0] : "";
    part("-high").textContent = shown ? bounds[1] : "";
  }
}
