// The question whether the face belongs to the subject of the avatar, and a notice about the newest event.

const NOTICE_S = 30; // for which an event is shown
const SHOWN_KINDS = new Set(["new_avatar", "person_back", "appearance"]);

/** Shows the question while it is open, and sends the answer; `showError` is called with an error message. */
export class IdentityQuestion {
  constructor(fieldset, notice, showError) {
    this.fieldset = fieldset;
    this.notice = notice;
    this.showError = showError;
    const [same, other] = fieldset.querySelectorAll("button");
    same.onclick = () => this.answer(true);
    other.onclick = () => this.answer(false);
  }

  /** Show `subject` and `events` of the status. */
  update(subject, events) {
    const asked = subject?.question_open === true;
    if (asked && this.fieldset.hidden) this.fieldset.disabled = false;
    this.fieldset.hidden = !asked;
    const newest = (Array.isArray(events) ? events : []).filter(({ kind, ago_s }) => SHOWN_KINDS.has(kind) && ago_s < NOTICE_S).at(-1);
    const text = newest ? `${newest.text.charAt(0).toUpperCase()}${newest.text.slice(1)}.` : "";
    if (this.notice.textContent !== text) this.notice.textContent = text; // set only if new: it is read out
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
      // 409: the question is closed; it was answered on another page, or decided by the daemon.
      if (!response.ok && response.status !== 409) throw new Error(await response.text());
      this.fieldset.hidden = true;
      this.showError("");
    } catch {
      this.fieldset.disabled = false;
      this.showError("The answer could not be sent to the daemon. Try again.");
    }
  }
}
