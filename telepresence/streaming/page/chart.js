// Likeness and latency of the last minutes, as two lines in one chart.

const POINTS = 180; // seconds that are drawn
const [LEFT, RIGHT, TOP, BOTTOM] = [26, 274, 8, 84]; // of the plot in the 300 x 100 of the chart

/** The round numbers that hold all of `values`: [low, high], at least `least` apart. */
function range(values, step, least) {
  const low = step * Math.floor(Math.min(...values) / step);
  const high = step * Math.ceil(Math.max(...values) / step);
  return [low, Math.max(high, low + least)];
}

/** A line through `values` (null: a gap), the newest at the right, scaled to [low, high]. */
function line(values, [low, high]) {
  const x = (i) => RIGHT - ((RIGHT - LEFT) * (values.length - 1 - i)) / (POINTS - 1);
  const y = (value) => BOTTOM - ((BOTTOM - TOP) * (value - low)) / (high - low);
  let path = "";
  values.forEach((value, i) => {
    if (value === null) return;
    path += `${i === 0 || values[i - 1] === null ? "M" : "L"}${x(i).toFixed(1)} ${y(value).toFixed(1)}`;
  });
  return path;
}

/** Draws into `svg`, which has a path and two labels (low, high) for each of `psnr` and `latency`. */
export class Chart {
  constructor(svg) {
    this.svg = svg;
    this.psnr = [];
    this.latency = [];
  }

  /** A second later: `psnr` in dB, `latency` in ms; what is not known leaves a gap. */
  add(psnr, latency) {
    for (const [values, value] of [[this.psnr, psnr], [this.latency, latency]]) {
      values.push(Number.isFinite(value) ? value : null);
      if (values.length > POINTS) values.shift();
    }
    this.draw("psnr", this.psnr, 2, 4);
    this.draw("latency", this.latency, 20, 40);
  }

  draw(name, values, step, least) {
    const known = values.filter((value) => value !== null);
    const bounds = known.length ? range(known, step, least) : null;
    const part = (selector) => this.svg.querySelector(`.${name}${selector}`);
    part("").setAttribute("d", bounds ? line(values, bounds) : "");
    part("-low").textContent = bounds ? bounds[0] : "";
    part("-high").textContent = bounds ? bounds[1] : "";
  }
}
