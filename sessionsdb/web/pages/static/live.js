"use strict";
// Follow a session: put its messages, its running reply and its inbox into the page, as they come.
// The server escapes all HTML that it sends here. The pieces of a reply are text, never HTML.
(() => {
  const live = document.getElementById("live");
  if (!live) return;
  const transcript = document.getElementById("transcript");
  const waiting = document.getElementById("waiting");
  const running = document.getElementById("running");
  const turn = document.getElementById("turn");
  const reply = document.getElementById("reply");
  const text = reply.querySelector(".text");
  const data = document.getElementById("data");
  const lost = document.getElementById("lost");
  const state = document.getElementById("state");
  let run = null;
  let length = 0;
  let cursor = live.dataset.after;

  const conversation = document.querySelector(".conversation");
  const isAtEnd = () => conversation.getBoundingClientRect().bottom <= window.innerHeight + 160;
  const showEnd = () => conversation.scrollIntoView({ block: "end" });

  // A reader at the end of the page stays there. A reader further up is not moved.
  function keepPlace(change) {
    const follow = isAtEnd();
    change();
    if (follow) showEnd();
  }

  function element(html) {
    const template = document.createElement("template");
    template.innerHTML = html.trim();
    window.showTimes(template.content);
    return template.content;
  }

  function setState(name, words) {
    const mark = document.createElement("span");
    mark.className = `state ${name}`;
    mark.textContent = words;
    state.replaceChildren(mark);
    for (const part of document.querySelectorAll("[data-while]")) {
      part.hidden = !part.dataset.while.split(" ").includes(name);
    }
    const button = document.getElementById("interrupt");
    if (button) button.textContent = name === "held" ? "Withdraw the question" : "Interrupt the turn";
  }

  function dropReply() {
    run = null;
    length = 0;
    text.textContent = "";
    reply.hidden = true;
    data.replaceChildren();
  }

  // The form of a question that is shown already stays: a person may be writing the answer.
  function showTurn(part) {
    const shown = turn.querySelector(".question")?.dataset.question;
    if (shown && part.querySelector(".question")?.dataset.question === shown) return;
    turn.replaceChildren(part);
  }

  function reload(url) { location.assign(url); location.reload(); }

  // A message stands above its reply while its turn runs, and behind it while it waits.
  function moveQueued(item, status) {
    if (status === "started") running.append(item);
    else if (status === "failed") waiting.prepend(item);
    else { item.remove(); return; }
    const mark = item.querySelector(".state");
    mark.className = `state ${status === "started" ? "running" : "waiting"}`;
    mark.textContent = status === "started" ? "running" : "waits";
  }

  function showRun(of) {
    if (run === of) return;
    dropReply();
    run = of;
  }

  const on = {
    message({ seq, html }) {
      if (document.getElementById(`m-${seq}`)) return;
      document.getElementById("empty")?.remove();
      dropReply();
      transcript.append(element(html));
    },
    queued({ position, html }) {
      if (document.getElementById(`q-${position}`)) return;
      waiting.append(element(html));
    },
    turn({ status, html, positions }) {
      showTurn(element(html));
      if (status === "started") setState("running", "running");
      if (status === "held") setState("held", "waits for an answer");
      if (status === "failed" || status === "dead" || status === "cancelled") dropReply();
      for (const position of positions) {
        const item = document.getElementById(`q-${position}`);
        if (item) moveQueued(item, status);
      }
      if (running.children.length) document.getElementById("empty")?.remove();
    },
    delta({ run: of, offset, text: piece }) {
      showRun(of);
      if (offset + piece.length <= length) return;
      text.append(piece.slice(Math.max(0, length - offset)));
      length = offset + piece.length;
      reply.hidden = false;
    },
    data({ run: of, html }) { showRun(of); data.append(element(html)); },
    reset() { dropReply(); },
    idle() { setState("idle", "idle"); if (!turn.querySelector(".turn.died, form")) turn.replaceChildren(); },
    // Every stream of an ended session has this event, also that of a page which shows the end.
    ended({ url }) { if (!("ended" in live.dataset)) reload(url); },
    reload({ url }) { reload(url); },
  };

  // The browser repeats a broken connection by itself, with the last event's id. A server that
  // answers with an error ends that, so the page connects anew behind the last event that it saw.
  // The pauses grow from 3 s to a minute: a token that is refused again and again counts as a failed
  // login of its address.
  let pause = 3000;

  function connect() {
    const source = new EventSource(`${live.dataset.url}?after=${encodeURIComponent(cursor)}`);
    source.onopen = () => { lost.hidden = true; pause = 3000; };
    source.onerror = () => {
      lost.hidden = false;
      if (source.readyState !== EventSource.CLOSED) return;
      setTimeout(connect, pause);
      pause = Math.min(2 * pause, 60000);
    };
    for (const [name, show] of Object.entries(on)) {
      source.addEventListener(name, (event) => {
        keepPlace(() => show(JSON.parse(event.data)));
        if (event.lastEventId) cursor = event.lastEventId;
      });
    }
    window.addEventListener("pagehide", () => source.close(), { once: true });
  }

  if (!location.hash && !isAtEnd()) showEnd();
  connect();
})();
