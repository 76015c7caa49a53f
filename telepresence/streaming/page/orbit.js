// Turn the head by dragging, or with the arrow keys: it turns for everybody who watches.

const YAW = 1.05; // rad at most, as the daemon has it
const PITCH = 0.5;
const DRAG = 1.6; // rad for a drag across the whole picture
const STEP = 0.08; // rad a key press
const PERIOD_MS = 33; // between two messages
const SETTLED_MS = 2000; // after which the daemon knows of a turn, and says so
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };

const within = (value, limit) => Math.max(-limit, Math.min(limit, value));

/** `element` is dragged, `reset` looks straight again; `send` gets { yaw, pitch } in rad. */
export class Orbit {
  constructor(element, reset, send) {
    [this.element, this.reset, this.send] = [element, reset, send];
    this.turned = -Infinity; // when, last
    this.place(0, 0);
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

  /** Go on from where the daemon says that the head was turned, perhaps by somebody else. */
  show(view) {
    if (!view || this.element.classList.contains("held") || performance.now() - this.turned < SETTLED_MS) return;
    this.place(view.yaw, view.pitch);
  }

  place(yaw, pitch) {
    [this.yaw, this.pitch] = [within(yaw, YAW), within(pitch, PITCH)];
    this.reset.hidden = this.yaw === 0 && this.pitch === 0;
  }

  turn(yaw, pitch) {
    this.place(yaw, pitch);
    this.turned = performance.now();
    this.later ??= setTimeout(() => {
      this.later = undefined;
      this.send({ yaw: this.yaw, pitch: this.pitch });
    }, PERIOD_MS);
  }
}
