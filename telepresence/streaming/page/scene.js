// What the head is put over: "torso", "room", "#203040", "torso+room" ...

/** The controls in `fieldset`; `trouble` is told what went wrong. */
export class Scene {
  constructor(fieldset, trouble) {
    this.fieldset = fieldset;
    this.trouble = trouble;
    this.choosing = 0; // wishes on their way: until they are answered, the daemon's state does not move the controls
    [this.torso, this.behind, this.colour] = ["#torso", "#behind", "#colour"].map((id) => fieldset.querySelector(id));
    for (const control of [this.torso, this.behind, this.colour]) control.onchange = () => this.choose();
  }

  /** Show what the daemon shows. */
  show(background) {
    if (typeof background !== "string" || this.choosing) return;
    const [first, rest] = background.split("+");
    const behind = first === "torso" ? (rest ?? "calm") : first;
    this.torso.checked = first === "torso";
    if (behind.startsWith("#")) this.colour.value = behind;
    if (behind === "picture") this.behind.querySelector("[value=picture]").hidden = false;
    this.behind.value = behind.startsWith("#") ? "colour" : behind;
    this.colour.hidden = this.behind.value !== "colour";
    this.fieldset.disabled = false;
  }

  async choose() {
    const behind = this.behind.value === "colour" ? this.colour.value : this.behind.value;
    this.colour.hidden = this.behind.value !== "colour";
    this.choosing++;
    let text = "";
    try {
      const response = await fetch("/background", {
        method: "PUT",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ background: this.torso.checked ? `torso+${behind}` : behind }),
      });
      if (!response.ok) text = await response.text();
    } catch {
      text = "The daemon does not answer.";
    } finally {
      this.choosing--;
    }
    this.trouble(text.trim());
  }
}
