// The question whether the face is the avatar's person, and what else happened to the avatar.

const NOTICE_S = 30; // for so long an event is shown
const SHOWN = new Set(["new avatar", "person back", "appearance"]);

/** Shows the question while the daemon asks it, and answers it; `trouble` is told what went wrong. */
export class Question {
  constructor(fieldset, notice, trouble) {
    this.fieldset = fieldset;
    this.notice = notice;
    this.trouble = trouble;
    const [same, other] = fieldset.querySelectorAll("button");
    same.onclick = () => this.answer(true);
    other.onclick = () => this.answer(false);
  }

  show(person, events) {
    const asked = person?.asked === true;
    if (asked && this.fieldset.hidden) this.fieldset.disabled = false;
    this.fieldset.hidden = !asked;
    const newest = (Array.isArray(events) ? events : []).filter(({ kind, ago_s }) => SHOWN.has(kind) && ago_s < NOTICE_S).at(-1);
    const text = newest ? `${newest.text.charAt(0).toUpperCase()}${newest.text.slice(1)}.` : "";
    if (this.notice.textContent !== text) this.notice.textContent = text; // else a screen reader would repeat it
    this.notice.hidden = !text;
  }

  async answer(same) {
    this.fieldset.disabled = true;
    try {
      const response = await fetch("/person", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ same }),
      });
      // Nobody asks any more (409): it was answered elsewhere, or has become clear.
      if (!response.ok && response.status !== 409) throw new Error(await response.text());
      this.fieldset.hidden = true;
      this.trouble("");
    } catch {
      this.fieldset.disabled = false;
      this.trouble("The answer did not reach the daemon. Try again.");
    }
  }
}
