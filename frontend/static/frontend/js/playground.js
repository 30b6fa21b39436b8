// Playground: sends the conversation, shows the answer as it streams. Keeps nothing but what the page shows.
const root = document.querySelector("[data-playground]");
const embeds = root?.dataset.playground === "embed";

if (root) {
  const log = root.querySelector(".playground-log");
  const form = root.querySelector("[data-playground-form]");
  const question = form.querySelector("textarea");
  const stop = root.querySelector("[data-playground-stop]");
  const figures = root.querySelector("[data-playground-figures]");
  const said = [];
  let running = null;

  const bubble = (who, role) => {
    const box = document.createElement("div");
    box.className = `bubble is-${role}`;
    const name = document.createElement("p");
    name.className = "bubble-name";
    name.textContent = who;
    const text = document.createElement("p");
    text.className = "bubble-text";
    box.append(name, text);
    log.append(box);
    return text;
  };

  const follow = () => { if (log) log.scrollTop = log.scrollHeight; };

  const events = async function* (response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        const lines = rest.slice(0, end).split("\n");
        rest = rest.slice(end + 2);
        const kind = lines.find((line) => line.startsWith("event:"));
        const data = lines.filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim()).join("\n");
        if (data) yield { kind: kind ? kind.slice(6).trim() : "", data };
      }
    }
  };

  const send = (body) =>
    fetch(root.dataset.url, {
      method: "POST",
      signal: running.signal,
      headers: {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "X-CSRFToken": form.querySelector("[name=csrfmiddlewaretoken]").value,
      },
      body: JSON.stringify(body),
    });

  const ask = async (text) => {
    said.push({ role: "user", content: text });
    bubble(root.dataset.you, "user").textContent = text;
    const answer = bubble(root.dataset.it, "assistant");
    answer.classList.add("is-waiting");
    follow();
    running = new AbortController();
    stop.hidden = false;
    const began = performance.now();
    let first = 0;
    let pieces = 0;
    try {
      const response = await send({ messages: said, max_tokens: Number(root.dataset.maxTokens) });
      if (!response.ok || !response.body) throw new Error(String(response.status));
      for await (const event of events(response)) {
        if (event.data === "[DONE]") break;
        const body = JSON.parse(event.data);
        if (event.kind === "trouble") {
          answer.classList.add("is-trouble");
          answer.textContent = body.detail;
          said.pop();
          return;
        }
        const piece = body.choices?.[0]?.delta?.content ?? "";
        if (piece) {
          first ||= performance.now() - began;
          pieces += 1;
          answer.textContent += piece;
          follow();
        }
      }
      said.push({ role: "assistant", content: answer.textContent });
      const seconds = (performance.now() - began) / 1000;
      const shown = new Intl.NumberFormat(document.documentElement.lang || "en", { maximumFractionDigits: 2 });
      figures.textContent = `${shown.format(first / 1000)} s ${root.dataset.first} · ${shown.format(seconds)} s ${root.dataset.all} · ${shown.format(pieces)} ${root.dataset.pieces}`;
    } catch (error) {
      said.pop();
      answer.classList.add("is-trouble");
      answer.textContent += error.name === "AbortError" ? ` ${root.dataset.stopped}` : root.dataset.trouble;
    } finally {
      answer.classList.remove("is-waiting");
      answer.dataset.done = "true";
      stop.hidden = true;
      running = null;
      question.focus();
    }
  };

  const cell = (name, text, scope) => {
    const made = document.createElement(name);
    made.textContent = text;
    if (scope) made.scope = scope;
    return made;
  };

  const compare = async (texts) => {
    const place = root.querySelector("[data-playground-near]");
    const shown = new Intl.NumberFormat(document.documentElement.lang || "en", { minimumFractionDigits: 2, maximumFractionDigits: 2 });
    running = new AbortController();
    stop.hidden = false;
    const began = performance.now();
    figures.textContent = "…";
    try {
      const response = await send({ texts });
      if (!response.ok || !response.body) throw new Error((await response.json().catch(() => ({}))).detail ?? root.dataset.trouble);
      for await (const event of events(response)) {
        if (event.data === "[DONE]") break;
        const body = JSON.parse(event.data);
        if (event.kind === "trouble") throw new Error(body.detail);
        const table = document.createElement("table");
        table.className = "table near";
        const head = table.createTHead().insertRow();
        head.append(cell("th", root.dataset.text, "col"), ...texts.map((_text, n) => cell("th", n + 1, "col")));
        body.near.forEach((line, n) => {
          const row = table.insertRow();
          row.append(cell("th", `${n + 1}  ${texts[n]}`, "row"));
          for (const value of line) {
            const figure = cell("td", shown.format(value));
            figure.className = "number near-cell";
            figure.dataset.near = Math.max(0, Math.min(10, Math.round(value * 10)));
            row.append(figure);
          }
        });
        place.replaceChildren(table);
        place.hidden = false;
        const seconds = (performance.now() - began) / 1000;
        figures.textContent = `${shown.format(seconds)} s · ${body.tokens} ${root.dataset.tokens} · ${body.dimensions} ${root.dataset.dimensions}`;
      }
    } catch (error) {
      figures.textContent = error.name === "AbortError" ? root.dataset.stopped : error.message || root.dataset.trouble;
    } finally {
      root.dataset.done = "true";
      stop.hidden = true;
      running = null;
      question.focus();
    }
  };

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = question.value.trim();
    if (!text || running) return;
    if (embeds) {
      compare(text.split("\n").map((line) => line.trim()).filter(Boolean));
      return;
    }
    question.value = "";
    ask(text);
  });
  question.addEventListener("keydown", (event) => {
    if (!embeds && event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  stop.addEventListener("click", () => running?.abort());
}
