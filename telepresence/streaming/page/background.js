// Controls for the background behind the head: "torso", "room", "#203040", "torso+room" ...

/** The controls in `fieldset`; `showError` is called with an error message, or an empty text. */
export class BackgroundControls {
  constructor(fieldset, showError) {
    this.fieldset = fieldset;
    this.showError = showError;
    this.pending = 0; // unanswered requests; until they are answered, the status does not change the controls
    this.answered = 0; // time of the last answer: a status that was requested before it may be older
    [this.torso, this.behind, this.colour] = ["#torso", "#behind", "#colour"].map((id) => fieldset.querySelector(id));
    for (const control of [this.torso, this.behind, this.colour]) control.onchange = () => this.choose();
  }

  /** Show `background` of a status that was requested at `requested` (milliseconds of `performance.now`). */
  update(background, requested) {
    if (typeof background !== "string" || this.pending || requested < this.answered) return;
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
    this.pending++;
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
      this.pending--;
      this.answered = performance.now();
    }
    this.showError(text.trim());
  }
}
