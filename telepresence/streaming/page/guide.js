// What of the face has been seen: a ring that fills, and one thing at a time to ask for.

const DIRECTIONS = ["right", "up right", "up", "up left", "left", "down left", "down", "down right"];
const EXPRESSIONS = { talk: "talking", smile: "a smile", open: "an open mouth", brows: "raised eyebrows" };
const SVG = "http://www.w3.org/2000/svg";
const GAP = 0.05; // part of a sector, at each end

/** An arc of `radius` around the middle, from part `from` to part `to` of a turn, anticlockwise from the right. */
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

/** The ring in `ring` (an empty svg) and the hint in `hint`; `box` holds both and is hidden when all has been seen. */
export class Guide {
  constructor(box, ring, hint) {
    [this.box, this.ring, this.hint] = [box, ring, hint];
    this.sectors = DIRECTIONS.map((name, i) => segment(ring, `looking ${name}`, 17, i / 8, 1 / 8));
    const keys = Object.keys(EXPRESSIONS);
    this.parts = keys.map((key, i) => segment(ring, EXPRESSIONS[key], 11, 0.125 + i / keys.length, 1 / keys.length));
    this.middle = document.createElementNS(SVG, "circle");
    this.middle.setAttribute("r", 4.5);
    ring.append(this.middle);
  }

  /** Show `guidance` of the status; null, or nothing left to ask for, hides it. */
  show(guidance) {
    const asks = typeof guidance?.hint === "string";
    this.box.hidden = !asks;
    const words = asks ? guidance.hint : "";
    if (this.hint.textContent !== words) this.hint.textContent = words; // else a screen reader would repeat it
    if (!asks) return;
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
