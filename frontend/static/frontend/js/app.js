/* What the browser adds to pages that work without it. No page-specific code, no markup of its own words
   (they come from #texts), no eval. Everything is delegated from the document, so swapped fragments just work. */
const root = document.documentElement;
const texts = document.getElementById("texts")?.dataset ?? {};
const language = root.lang || undefined;
const $ = (selector, from = document) => from.querySelector(selector);
const $$ = (selector, from = document) => [...from.querySelectorAll(selector)];
const on = (type, selector, act) => document.addEventListener(type, (event) => {
  const found = event.target instanceof Element && event.target.closest(selector);
  if (found) act(found, event);
});
const typing = (element) => element instanceof Element && element.matches("input, textarea, select, [contenteditable]");
root.classList.add("has-script");

/* ---- say: for screen readers; toast: for all ---- */
const say = (words) => { const live = $("#live"); if (live) live.textContent = words; };

function toast(words, tone = "bad") {
  const box = $("#toasts");
  if (!box || $$(".toast p", box).some((p) => p.textContent === words)) return;
  const item = document.createElement("div");
  item.className = `toast is-${tone}`;
  item.dataset.toast = "";
  const text = document.createElement("p");
  text.textContent = words;
  const close = document.createElement("button");
  close.type = "button";
  close.className = "icon-button";
  close.dataset.toastClose = "";
  close.setAttribute("aria-label", texts.dismiss ?? "");
  close.textContent = "×";
  item.append(text, close);
  box.append(item);
  fadeLater(item);
}

function fadeLater(item) { // good news goes by itself, trouble stays until it is dismissed
  if (item.matches(".is-bad, .is-warn")) return;
  let timer = setTimeout(() => item.remove(), 7000);
  item.addEventListener("pointerenter", () => clearTimeout(timer));
  item.addEventListener("pointerleave", () => { timer = setTimeout(() => item.remove(), 3000); });
}
on("click", "[data-toast-close]", (button) => button.closest("[data-toast]").remove());

/* ---- theme ---- */
function store(key, value) { try { value === null ? localStorage.removeItem(key) : localStorage.setItem(key, value); } catch { /* storage refused */ } }
function stored(key) { try { return localStorage.getItem(key); } catch { return null; } }
function showTheme() {
  for (const button of $$("[data-theme-set]")) button.setAttribute("aria-pressed", String(button.dataset.themeSet === (root.dataset.theme ?? "")));
}
on("click", "[data-theme-set]", (button) => {
  const theme = button.dataset.themeSet;
  if (theme) root.dataset.theme = theme; else delete root.dataset.theme;
  store("theme", theme || null);
  showTheme();
});

/* ---- copy ---- */
on("click", "[data-copy]", async (button) => {
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
  } catch {
    toast(texts.copyFailed ?? "", "warn");
    return;
  }
  button.classList.add("is-copied");
  say(texts.copied ?? "");
  setTimeout(() => button.classList.remove("is-copied"), 1600);
});

/* ---- dialogs, menus, rail ---- */
on("click", "[data-opens]", (button) => {
  const dialog = document.getElementById(button.dataset.opens);
  button.closest("details[data-menu]")?.removeAttribute("open");
  dialog?.showModal?.();
});
on("click", "[data-closes]", (button) => button.closest("dialog").close());
on("click", "dialog", (dialog, event) => { // a click beside it closes it
  if (event.target !== dialog) return;
  const box = dialog.getBoundingClientRect();
  const inside = event.clientX >= box.left && event.clientX <= box.right && event.clientY >= box.top && event.clientY <= box.bottom;
  if (!inside) dialog.close();
});
on("input", "[data-confirm]", (input) => {
  const button = $("[data-confirmed]", input.form);
  if (button) button.disabled = input.value.trim() !== input.dataset.confirm;
});
document.addEventListener("click", (event) => {
  for (const menu of $$("details[data-menu][open]")) if (!menu.contains(event.target)) menu.open = false;
});
document.addEventListener("toggle", (event) => {
  const menu = event.target;
  if (menu.matches?.("details[data-menu]") && menu.open) for (const other of $$("details[data-menu][open]")) if (other !== menu) other.open = false;
}, true);
function rail(open) {
  root.toggleAttribute("data-rail", false);
  if (open) root.dataset.rail = "open";
  const body = $(".shell-body");
  if (body) body.inert = open;
  if (open) $(".rail a[href]:not(.rail-brand-link)")?.focus(); else $("[data-rail-open]")?.focus({ preventScroll: true });
}
on("click", "[data-rail-open]", (_link, event) => { event.preventDefault(); rail(true); });
on("click", "[data-rail-close]", (_link, event) => { event.preventDefault(); rail(false); });

/* ---- keys ---- */
document.addEventListener("keydown", (event) => {
  const at = document.activeElement;
  if (event.key === "Escape") {
    if (root.dataset.rail) { rail(false); return; }
    const menu = $("details[data-menu][open]");
    if (menu) { menu.open = false; $("summary", menu).focus(); return; }
    if (at?.matches?.("[data-search]")) at.blur();
    return;
  }
  if ((event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "k" || event.key === "/" && !typing(at) && !event.ctrlKey && !event.metaKey) {
    const search = $("[data-search]");
    if (search && !$("dialog[open]")) { event.preventDefault(); search.focus(); search.select(); }
    return;
  }
  const menu = at?.closest?.("details[data-menu][open]");
  if (menu && (event.key === "ArrowDown" || event.key === "ArrowUp")) {
    const items = $$(".menu-box :is(a, button)", menu);
    const next = items.indexOf(at) + (event.key === "ArrowDown" ? 1 : -1);
    items[(next + items.length) % items.length]?.focus();
    event.preventDefault();
    return;
  }
  if (at?.matches?.("[role=tab]") && ["ArrowRight", "ArrowLeft", "Home", "End"].includes(event.key)) {
    const tabs = $$("[role=tab]", at.parentElement);
    const here = tabs.indexOf(at);
    const next = { ArrowRight: here + 1, ArrowLeft: here - 1 + tabs.length, Home: 0, End: tabs.length - 1 }[event.key] % tabs.length;
    tabs[next].focus();
    tabs[next].click();
    event.preventDefault();
    return;
  }
  if (typing(at) || event.ctrlKey || event.metaKey || event.altKey || $("dialog[open]")) return;
  if (event.key === "j" || event.key === "k") { walk(event.key === "j" ? 1 : -1); event.preventDefault(); }
  if (event.key === "Enter" && (at === document.body || at?.matches?.("tr, .table-scroll"))) $("tr.is-at a[href]")?.click();
});
function walk(step) { // rows of the table one is in, else of the first one on the page
  const here = $("tr.is-at");
  const table = here?.closest("table") ?? $("[data-table]:has(tr[data-row])");
  if (!table) return;
  const rows = $$("tr[data-row]", table);
  const next = Math.max(0, Math.min(rows.length - 1, (here ? rows.indexOf(here) : step > 0 ? -1 : rows.length) + step));
  here?.classList.remove("is-at");
  rows[next]?.classList.add("is-at");
  rows[next]?.scrollIntoView({ block: "nearest" });
  $("a[href]", rows[next])?.focus({ preventScroll: true });
}
on("click", "tr[data-row]", (row, event) => {
  if (event.target.closest("a, button, input, label, summary, select") || getSelection()?.toString()) return;
  $("a[href]", row)?.click();
});

/* ---- forms ---- */
on("click", "[data-step]", (button) => {
  const input = $("input", button.closest("[data-stepper]"));
  button.dataset.step > 0 ? input.stepUp() : input.stepDown();
  input.dispatchEvent(new Event("input", { bubbles: true }));
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
function limits(stepper) {
  const input = $("input", stepper);
  for (const button of $$("[data-step]", stepper)) {
    const edge = button.dataset.step > 0 ? input.max : input.min;
    button.disabled = edge !== "" && (button.dataset.step > 0 ? Number(input.value) >= Number(edge) : Number(input.value) <= Number(edge));
  }
}
on("input", "[data-stepper] input", (input) => limits(input.closest("[data-stepper]")));
on("click", "[data-disabled]", (_button, event) => { event.preventDefault(); event.stopPropagation(); });
on("change", "[data-auto-submit] select, [data-auto-submit] input:not([type=search])", (field) => field.form.requestSubmit());
document.addEventListener("submit", (event) => {
  const button = event.submitter;
  if (!button || event.defaultPrevented || event.target.method === "dialog" || event.target.hasAttribute("data-downloads") || button.closest("[hx-post], [hx-get]")) return;
  button.dataset.underWay = "";
  if (button.dataset.busy) $("span", button).textContent = button.dataset.busy;
  setTimeout(() => button.setAttribute("aria-disabled", "true")); // after the form took its values
});
addEventListener("pageshow", () => { for (const button of $$("[data-under-way]")) { delete button.dataset.underWay; button.removeAttribute("aria-disabled"); } });
on("click", "[role=tab]", (tab) => {
  const box = tab.closest("[data-twins]");
  for (const other of $$("[role=tab]", box)) {
    const chosen = other === tab;
    other.setAttribute("aria-selected", String(chosen));
    other.tabIndex = chosen ? 0 : -1;
    document.getElementById(other.getAttribute("aria-controls")).hidden = !chosen;
  }
});
on("click", "[data-dismiss]", (button) => {
  const box = button.closest("[data-dismissible]");
  store(`dismissed:${box.dataset.dismissible}`, "1");
  box.hidden = true;
});

/* ---- time ---- */
const relative = new Intl.RelativeTimeFormat(language, { numeric: "always", style: "long" });
function distance(seconds) {
  const span = Math.abs(seconds);
  const [unit, length] = span < 60 ? ["second", 1] : span < 3600 ? ["minute", 60] : span < 172800 ? ["hour", 3600] : ["day", 86400];
  return span < 10 ? texts.now ?? "" : relative.format(Math.sign(seconds) * Math.floor(span / length), unit);
}
function span(seconds) { // as numbers.duration: at most two units
  const whole = Math.max(0, Math.round(seconds));
  const units = [["day", 86400, "d"], ["hour", 3600, "h"], ["minute", 60, "min"], ["second", 1, "s"]];
  const place = units.findIndex(([, length]) => whole >= length);
  if (place < 0) return "0 s";
  const [, length, short] = units[place];
  const next = units[place + 1];
  const rest = next ? Math.floor((whole % length) / next[1]) : 0;
  return `${Math.floor(whole / length)} ${short}${rest ? ` ${rest} ${next[2]}` : ""}`;
}
function tick() {
  if (document.hidden) return;
  const now = Date.now();
  for (const time of $$("time[data-relative]")) {
    const words = distance((Date.parse(time.dateTime) - now) / 1000);
    if (time.textContent !== words) time.textContent = words;
  }
  for (const item of $$("[data-since]")) item.textContent = span((now - Date.parse(item.dataset.since)) / 1000);
  for (const bar of $$("[data-progress-since]")) bar.value = Math.min(97, (now - Date.parse(bar.dataset.progressSince)) / 10 / bar.dataset.progressOver);
}
setInterval(tick, 1000);
document.addEventListener("visibilitychange", tick);

/* ---- title and icon of the page ---- */
const plainTitle = document.title;
let lastState = "";
function pageState() {
  const state = $("main [data-page-state]:not([data-page-state=''])")?.dataset.pageState ?? $("main[data-page-state]")?.dataset.pageState ?? "";
  const icon = $("#favicon");
  const sign = { building: "◌ ", ready: "✓ ", failed: "✕ " }[state] ?? "";
  document.title = sign + plainTitle;
  if (icon) icon.href = icon.dataset[state] ?? icon.dataset.plain;
  if (lastState === "building" && state && state !== lastState) say(texts[state] ?? "");
  lastState = state;
}

/* ---- strip: one holder lights up everywhere ---- */
function light(holder) {
  for (const lit of $$(".is-lit")) lit.classList.remove("is-lit");
  if (!holder) { delete document.body.dataset.lit; return; }
  document.body.dataset.lit = "";
  for (const item of $$(`[data-holder="${CSS.escape(holder)}"], [data-holders~="${CSS.escape(holder)}"]`)) item.classList.add("is-lit");
}
const lights = (event) => light(event.target instanceof Element ? event.target.closest("[data-holder]")?.dataset.holder : "");
document.addEventListener("pointerover", lights);
document.addEventListener("focusin", lights);
document.documentElement.addEventListener("pointerleave", () => light(""));

/* ---- charts ---- */
const WIDTH = 1000, HEIGHT = 100, SVG = "http://www.w3.org/2000/svg";
const charts = new WeakMap();
const number = new Intl.NumberFormat(language, { maximumFractionDigits: 2 });
const clock = new Intl.DateTimeFormat(language, { dateStyle: "medium", timeStyle: "short" });
function dataOf(figure) {
  if (!charts.has(figure)) charts.set(figure, JSON.parse(figure.dataset.chart));
  return charts.get(figure);
}
function nice(top) { // as charts.nice
  if (!(top > 0)) return [1, 2];
  const power = 10 ** Math.floor(Math.log10(top));
  const [step, parts] = [[1, 2], [1.5, 3], [2, 4], [3, 3], [4, 4], [5, 5], [6, 3], [8, 4], [10, 5]].find(([s]) => top <= s * power * (1 + 1e-9));
  return [step * power, parts];
}
const place = (data, index) => data.kind === "bar" ? (index + .5) / data.times.length : data.times.length > 1 ? index / (data.times.length - 1) : .5;
function point(figure, index) {
  const data = dataOf(figure);
  const plot = $(".chart-plot", figure), tip = $(".chart-tip", figure), cross = $(".cross", figure);
  if (!plot || index === null) { if (tip) tip.hidden = true; cross?.setAttribute("visibility", "hidden"); return; }
  index = Math.max(0, Math.min(data.times.length - 1, index));
  data.at = index;
  const share = place(data, index);
  cross.setAttribute("x1", `${share * 100}%`);
  cross.setAttribute("x2", `${share * 100}%`);
  cross.setAttribute("visibility", "visible");
  const time = document.createElement("p");
  time.textContent = clock.format(data.times[index] * 1000);
  const lines = data.names.map((name, n) => {
    const line = document.createElement("p"), key = document.createElement("i"), value = document.createElement("strong");
    key.className = `key series-${n + 1}`;
    const amount = data.values[n][index];
    value.textContent = amount === null ? "--" : `${number.format(amount)} ${data.unit}`;
    line.append(key, name, value);
    return line;
  });
  tip.replaceChildren(time, ...lines);
  tip.hidden = false;
  const width = $("svg", plot).clientWidth, left = share * width;
  tip.style.left = left > width / 2 ? "auto" : `${left + 10}px`;
  tip.style.right = left > width / 2 ? `${plot.clientWidth - left + 10}px` : "auto";
  return tip.textContent;
}
on("pointermove", ".chart-plot", (plot, event) => {
  const figure = plot.closest(".chart"), data = dataOf(figure), box = $("svg", plot).getBoundingClientRect();
  const share = (event.clientX - box.left) / box.width;
  point(figure, data.kind === "bar" ? Math.floor(share * data.times.length) : Math.round(share * (data.times.length - 1)));
});
on("pointerout", ".chart-plot", (plot, event) => { if (!plot.contains(event.relatedTarget)) point(plot.closest(".chart"), null); });
on("focusout", ".chart-plot", (plot) => point(plot.closest(".chart"), null));
on("keydown", ".chart-plot", (plot, event) => {
  const figure = plot.closest(".chart"), data = dataOf(figure), last = data.times.length - 1;
  const here = data.at ?? last;
  const next = { ArrowLeft: here - 1, ArrowRight: here + 1, Home: 0, End: last }[event.key];
  if (next === undefined) return;
  event.preventDefault();
  say(point(figure, next) ?? "");
});
function append(figure, time, values) {
  const data = dataOf(figure);
  if (data.times.length && time <= data.times.at(-1)) return; // seen already
  data.times.push(time);
  values.forEach((value, n) => data.values[n]?.push(value));
  while (data.times.length > Math.max(2, data.keep)) { data.times.shift(); for (const line of data.values) line.shift(); }
  draw(figure, data);
}
function draw(figure, data) {
  const shapes = $(".chart-shapes", figure);
  if (!shapes) return;
  const columns = data.times.map((_t, i) => data.values.map((line) => line[i]));
  const tops = data.kind === "bar" ? columns.map((c) => c.reduce((a, b) => a + (b ?? 0), 0)) : columns.flat().filter((v) => v !== null);
  const [end, parts] = nice(Math.max(0, data.limit ?? 0, data.top ?? 0, ...tops));
  const y = (value) => HEIGHT - value / end * HEIGHT, x = (i) => place(data, i) * WIDTH;
  if (data.kind === "bar") {
    const step = WIDTH / data.times.length, width = step * (data.times.length < 60 ? .72 : .9);
    shapes.replaceChildren(...columns.flatMap((column, i) => {
      let at = 0;
      return column.flatMap((value, n) => {
        if (!value) return [];
        const bar = document.createElementNS(SVG, "rect");
        bar.setAttribute("class", `bar-${n + 1}`);
        bar.setAttribute("x", i * step + (step - width) / 2);
        bar.setAttribute("y", y(at + value));
        bar.setAttribute("width", width);
        bar.setAttribute("height", y(at) - y(at + value));
        at += value;
        return [bar];
      });
    }));
  } else {
    data.values.forEach((line, n) => {
      const runs = [];
      line.forEach((value, i) => { if (value === null) runs.push([]); else (runs.at(-1) ?? runs[runs.push([]) - 1]).push(`${x(i).toFixed(1)} ${y(value).toFixed(2)}`); });
      const full = runs.filter((run) => run.length);
      $(`.line-${n + 1}`, shapes)?.setAttribute("d", full.map((run) => `M${run.join("L")}${run.length === 1 ? "h0" : ""}`).join(""));
      $(`.area-${n + 1}`, shapes)?.setAttribute("d", full.map((run) => `M${run[0].split(" ")[0]} ${HEIGHT}L${run.join("L")}L${run.at(-1).split(" ")[0]} ${HEIGHT}z`).join(""));
    });
  }
  const short = new Intl.NumberFormat(language, { notation: "compact", maximumFractionDigits: 1 });
  for (const label of $$(".grid-label", figure)) {
    const n = Number(label.dataset.grid);
    if (n <= parts) label.textContent = short.format(end * n / $$(".grid-label", figure).length);
  }
  data.values.forEach((line, n) => { const last = $(`[data-last="${n}"]`, figure); if (last) { const v = line.findLast((value) => value !== null); last.textContent = v == null ? "--" : number.format(v); } });
  const edges = $$(".chart-axis span", figure);
  if (edges.length === 3) [0, Math.floor(data.times.length / 2), data.times.length - 1].forEach((i, n) => { edges[n].textContent = new Intl.DateTimeFormat(language, { timeStyle: "short" }).format(data.times[i] * 1000); });
}

/* ---- htmx: errors with their reason; focus, open details and chosen tabs outlive a swap ---- */
let kept = null;
const summaries = (part) => $$("details > summary", part);
const called = (summary) => `${summary.closest("figure[id]")?.id ?? ""} ${summary.textContent}`; // each chart has its own table
function mark(element) { // how to find the same thing in what takes its place
  if (element.id) return `#${CSS.escape(element.id)}`;
  const tag = element.localName;
  if (element.getAttribute("name")) return `${tag}[name="${CSS.escape(element.getAttribute("name"))}"]${element.type === "radio" ? `[value="${CSS.escape(element.value)}"]` : ""}`;
  for (const name of ["href", "data-opens", "data-copy", "aria-label"]) if (element.hasAttribute(name)) return `${tag}[${name}="${CSS.escape(element.getAttribute(name))}"]`;
  return "";
}
document.addEventListener("htmx:beforeSwap", (event) => {
  const at = document.activeElement, target = event.detail.target;
  const inside = at && at !== document.body && target?.contains(at);
  kept = target ? {
    focus: inside && mark(at),
    summary: inside && at.localName === "summary" && at.textContent,
    tab: inside && at.matches("[role=tab]") && at.textContent,
    inRow: inside && Boolean(at.closest("tr.is-at")),
    open: new Map(summaries(target).map((summary) => [called(summary), summary.parentElement.open])),
    tabs: $$("[role=tab][aria-selected=true]", target).map((tab) => tab.textContent),
  } : null;
});
function restore(part) {
  if (!kept) return;
  for (const summary of summaries(part)) if (kept.open.has(called(summary))) summary.parentElement.open = kept.open.get(called(summary));
  for (const tab of $$("[role=tab]:not([aria-selected=true])", part)) if (kept.tabs.includes(tab.textContent)) tab.click();
  if (document.activeElement !== document.body) return;
  const again = kept.focus ? $(kept.focus, part)
    : [...summaries(part), ...$$("[role=tab]", part)].find((item) => item.textContent === (kept.summary || kept.tab));
  again?.focus({ preventScroll: true });
  if (kept.inRow) again?.closest("tr[data-row]")?.classList.add("is-at");
}
document.addEventListener("htmx:afterSettle", (event) => {
  const target = event.detail.target;
  const part = target.isConnected ? target : document.getElementById(target.id) ?? document;
  ready(part);
  const wanted = $("[data-focus]", part) ?? $("[aria-invalid=true]", part);
  if (wanted && (event.detail.requestConfig?.verb ?? "get") !== "get") { wanted.focus(); return; }
  restore(part);
});
document.addEventListener("htmx:beforeRequest", (event) => { // what is being chosen in a list or read off a chart is not refreshed away
  if (event.detail.elt.matches("[data-keeps-picked]:has(input[name=pick]:checked), [data-keeps-hovered]:has(.chart-plot:is(:hover, :focus))")) event.preventDefault();
});
document.addEventListener("htmx:responseError", (event) => {
  const answer = event.detail.xhr;
  let reason = "";
  if ((answer.getResponseHeader("Content-Type") ?? "").includes("json")) { try { const problem = JSON.parse(answer.responseText); reason = problem.detail ?? problem.title ?? ""; } catch { /* no reason to be read */ } }
  reason ||= answer.getResponseHeader("X-Reason") ?? `HTTP ${answer.status}`;
  toast(`${texts.error ?? ""}: ${reason}`);
});
document.addEventListener("htmx:sendError", () => toast(texts.offline ?? "", "warn"));
document.addEventListener("htmx:timeout", () => toast(texts.slow ?? "", "warn"));

/* ---- once for the page, again for each fragment ---- */
function ready(part) {
  for (const stepper of $$("[data-stepper]", part)) limits(stepper);
  for (const box of $$("[data-dismissible]", part)) if (stored(`dismissed:${box.dataset.dismissible}`)) box.hidden = true;
  for (const item of $$("[data-toast]", part)) fadeLater(item);
  for (const log of $$("[data-to-end]", part)) log.scrollTop = log.scrollHeight; // the newest line is the last
  for (const item of $$("[data-chart-append]", document)) {
    const figure = document.getElementById(item.dataset.chartAppend);
    if (figure) append(figure, Number(item.dataset.t), JSON.parse(item.dataset.v));
    item.remove();
  }
  tick();
  pageState();
}
showTheme();
ready(document);
for (const tab of $$(".tabs [aria-current=page]")) tab.parentElement.scrollLeft = tab.offsetLeft - tab.parentElement.offsetLeft - (tab.parentElement.clientWidth - tab.offsetWidth) / 2; // where they do not all fit, the one that is open is seen
$("main form[method=post] [aria-invalid=true]")?.focus(); // a refused form leads to what was wrong
