// Turns the rendered head by dragging or by the arrow keys, for all viewers.

const MAX_YAW = 1.05; // rad, as in the daemon
const MAX_PITCH = 0.5; // rad
const DRAG = 1.6; // rad for a drag across the whole frame
const STEP = 0.08; // rad for a key press
const PERIOD_MS = 33; // between two messages
const SETTLED_MS = 2000; // after a turn on this page, in which the status may still show the old angles
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

const clamp = (value, limit) => Math.max(-limit, Math.min(limit, value));

/** `element` is dragged, the button `reset` sets both angles to 0; `send` is called with { yaw, pitch } in rad. */
export class Orbit {
  constructor(element, reset, send) {
    [this.element, this.reset, this.send] = [element, reset, send];
    this.turnedAt = -Infinity; // ms, of the last turn on this page
    this.setAngles(0, 0);
    element.addEventListener("pointerdown", (event) => this.grab(event));
    element.addEventListener("dblclick", () => this.turn(0, 0));
    element.addEventListener("keydown", (event) => this.key(event));
    reset.addEventListener("click", () => {
      this.turn(0, 0);
      element.focus();
    });
  }

  grab(event) {
    if (event.button !== 0) return;
    const { element } = this;
    const from = { x: event.clientX, y: event.clientY, yaw: this.yaw, pitch: this.pitch };
    element.setPointerCapture(event.pointerId);
    element.classList.add("held");
    const move = ({ clientX, clientY }) => {
      const scale = DRAG / element.clientWidth;
      this.turn(from.yaw + scale * (clientX - from.x), from.pitch - scale * (clientY - from.y));
    };
    const drop = () => {
      element.classList.remove("held");
      element.removeEventListener("pointermove", move);
    };
    element.addEventListener("pointermove", move);
    element.addEventListener("lostpointercapture", drop, { once: true });
  }

  key(event) {
    const step = KEYS[event.key];
    if (event.key === "Home") this.turn(0, 0);
    else if (step) this.turn(this.yaw + STEP * step[0], this.pitch + STEP * step[1]);
    else return;
    event.preventDefault();
  }

  /** Take over `orbit` of the status, which another viewer may have changed. */
  update(view) {
    if (!view || this.element.classList.contains("held") || performance.now() - this.turnedAt < SETTLED_MS) return;
    this.setAngles(view.yaw, view.pitch);
  }

  setAngles(yaw, pitch) {
    [this.yaw, this.pitch] = [clamp(yaw, MAX_YAW), clamp(pitch, MAX_PITCH)];
    this.reset.hidden = this.yaw === 0 && this.pitch === 0;
  }

  turn(yaw, pitch) {
    this.setAngles(yaw, pitch);
    this.turnedAt = performance.now();
    this.timer ??= setTimeout(() => {
      this.timer = undefined;
      this.send({ yaw: this.yaw, pitch: this.pitch });
    }, PERIOD_MS);
  }
}
