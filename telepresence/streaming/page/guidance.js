// Guidance for learning: a ring of the head directions and expressions seen so far, and a hint for the next one.

const DIRECTIONS = ["right", "up right", "up", "up left", "left", "down left", "down", "down right"];
const EXPRESSIONS = { talk: "talking", smile: "a smile", open: "an open mouth", brows: "raised eyebrows" };
const SVG = "http://www.w3.org/2000/svg";
const GAP = 0.05; // gap at each end of a sector, as part of its length

/** SVG path of an arc around the centre; `from` and `to` are parts of a turn, anticlockwise from the right. */
function arc(radius, from, to) {
  const at = (part) => {
    const angle = 2 * Math.PI * part;
    return `${(radius * Math.cos(angle)).toFixed(2)} ${(-radius * Math.sin(angle)).toFixed(2)}`;
  };
  return `M ${at(from)} A ${radius} ${radius} 0 0 0 ${at(to)}`;
}

function segment(ring, name, radius, middle, size) {
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", arc(radius, middle - (0.5 - GAP) * size, middle + (0.5 - GAP) * size));
  path.append(Object.assign(document.createElementNS(SVG, "title"), { textContent: name }));
  ring.append(path);
  return path;
}

/** Draws the ring into `ring` (an empty svg) and the hint into `hint`; `box`, which contains both, is hidden without hint. */
export class Guidance {
  constructor(box, ring, hint) {
    [this.box, this.ring, this.hint] = [box, ring, hint];
    this.sectors = DIRECTIONS.map((name, i) => segment(ring, `looking ${name}`, 17, i / 8, 1 / 8));
    const keys = Object.keys(EXPRESSIONS);
    this.parts = keys.map((key, i) => segment(ring, EXPRESSIONS[key], 11, 0.125 + i / keys.length, 1 / keys.length));
    this.middle = document.createElementNS(SVG, "circle");
    this.middle.setAttribute("r", 4.5);
    ring.append(this.middle);
  }

  /** Show `guidance` of the status; null, or a guidance without hint, hides it. */
  update(guidance) {
    const hasHint = typeof guidance?.hint === "string";
    this.box.hidden = !hasHint;
    const text = hasHint ? guidance.hint : "";
    if (this.hint.textContent !== text) this.hint.textContent = text; // set only if new: it is read out
    if (!hasHint) return;
    const seen = guidance.seen ?? {};
    this.sectors.forEach((path, i) => path.style.setProperty("--seen", guidance.ring?.[i] ?? 0));
    Object.keys(EXPRESSIONS).forEach((key, i) => {
      this.parts[i].style.setProperty("--seen", seen[key] ? 1 : 0);
      this.parts[i].style.display = key in seen ? "" : "none";
    });
    this.middle.style.setProperty("--seen", seen.ahead ? 1 : 0);
    const directions = (guidance.ring ?? []).filter((part) => part >= 1).length;
    const expressions = Object.keys(EXPRESSIONS).filter((key) => seen[key]).length;
    this.ring.setAttribute("aria-label", `Seen so far: ${directions} of 8 directions, ${expressions} expressions`);
  }
}
