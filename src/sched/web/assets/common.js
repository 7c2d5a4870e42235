// What every page needs: elements, the API, the live stream, the token, the theme.

/** Makes an element. Text is always text: nothing here ever parses markup. */
export function el(tag, properties = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
        if (value === undefined || value === null || value === false) continue;
        if (name === "class") node.className = value;
        else if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
        else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.filter((child) => child !== null && child !== undefined)
        .map((child) => (typeof child === "string" ? visible(child) : child)));
    return node;
}

// What the text of a log keeps as it is.
const BLANK = new Set(["\n", "\t"]);

/**
 * Text in which every character that would act unseen is written out: those that control, turn the
 * direction of writing or cannot be seen. Comments of rules come from strangers.
 */
export function visible(text) {
    const write = (c) => (BLANK.has(c) ? c : `\\u{${c.codePointAt(0).toString(16)}}`);
    return text.replace(/[\p{Cc}\p{Cf}\u2028\u2029]/gu, write);
}

export const byId = (id) => document.getElementById(id);

/** Sets text only where it differs, so that a screen reader and a selection are left alone. */
export function setText(node, text) {
    text = visible(text ?? "");
    if (node.textContent !== text) node.textContent = text;
}

/** Makes `parent` hold one child per item, keeping those that are there: focus survives. */
export function keyed(parent, items, key, create, update) {
    const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
    let place = parent.firstElementChild;
    for (const item of items) {
        const name = String(key(item));
        let child = known.get(name);
        known.delete(name);
        if (!child) {
            child = create(item);
            child.dataset.key = name;
        }
        update(child, item);
        if (child === place) place = place.nextElementSibling;
        else parent.insertBefore(child, place);
    }
    for (const child of known.values()) child.remove();
}

// The token lives as long as the tab, and never in an address or a cookie.
const TOKEN = "tsim-token";
export const token = () => sessionStorage.getItem(TOKEN) ?? "";

function headers(more = {}) {
    return token() ? { ...more, Authorization: `Bearer ${token()}` } : more;
}

/** What this viewer may do: nothing is offered that would be refused. Asked anew with each token. */
let asked = null;
export const whoami = () => (asked ??= askWho(token()).then(offer));

async function askWho(given) {
    const response = await fetch("/api/v1/whoami", { headers: given ? { Authorization: `Bearer ${given}` } : {}, cache: "no-store" });
    const who = await response.json();
    if (!response.ok) throw new ApiError(response.status, who.error);
    return who;
}

/** Shows the buttons that this viewer may press. */
function offer(who) {
    document.documentElement.classList.toggle("may-change", who.may_submit);
    document.documentElement.classList.toggle("sees-results", who.all_results);
    return who;
}

/**
 * Keeps a token that the server takes; returns what it says to any other.
 * It offers nothing yet: the page may be loaded anew because of the token, and
 * a button that is pressed in between would be lost with the old page.
 */
async function useToken(given) {
    try {
        await askWho(given);
    } catch (error) {
        if (error instanceof ApiError && error.status === 401 && given) return error.message;
        if (!(error instanceof ApiError)) return error.message;
    }
    sessionStorage.setItem(TOKEN, given);
    asked = null;
    return "";
}

export class ApiError extends Error {
    constructor(status, message, field) {
        super(message);
        this.status = status;
        // The field of what was sent that is wrong, where it is one's.
        this.field = field;
    }
}

/** Asks the API; a refusal becomes an ApiError with the server's words. */
export async function api(path, { method = "GET", body } = {}) {
    const response = await fetch(`/api/v1${path}`, {
        method,
        headers: headers(body ? { "Content-Type": "application/json" } : {}),
        body: body ? JSON.stringify(body) : undefined,
        cache: "no-store",
    });
    if (response.ok) return response.json();
    const text = await response.text();
    let refused = { error: text };
    try {
        refused = JSON.parse(text);
    } catch {
        // Not from our server: say what it said.
    }
    throw new ApiError(response.status, refused.error || `status ${response.status}`, refused.field);
}

/** Asks the API; where a token is missing or wrong, asks the user for it and tries once more. */
export async function withToken(work) {
    try {
        return await work();
    } catch (error) {
        if (!(error instanceof ApiError) || error.status !== 401) throw error;
        if (!(await askToken(error.message))) throw error;
        await whoami().catch(() => {});
        return work();
    }
}

/** Opens the token dialog; true when a token was given. */
export function askToken(message = "") {
    const dialog = byId("token-dialog");
    const field = byId("token-field");
    setText(byId("token-message"), message);
    byId("token-message").hidden = !message;
    field.value = token();
    dialog.returnValue = "";
    dialog.showModal();
    return new Promise((done) => {
        dialog.addEventListener("close", () => {
            done(dialog.returnValue === "ok");
        }, { once: true });
    });
}

/** Reads a server-sent event stream for ever, going on where it stopped. */
export async function live({ snapshot, update }) {
    const state = byId("live");
    const show = (name, text) => {
        state.dataset.state = name;
        setText(state, text);
    };
    let last = "";
    let pause = 500;
    for (;;) {
        try {
            await stream(last, (event) => {
                if (event.id) last = event.id;
                pause = 500;
                show("live", "live");
                if (event.name === "snapshot") snapshot(JSON.parse(event.data));
                if (event.name === "update") update(JSON.parse(event.data));
            });
            show("lost", "reconnecting");
        } catch (error) {
            if (error instanceof ApiError && error.status === 401) {
                show("lost", "token needed");
                if (await askToken(error.message)) continue;
            } else {
                show("lost", "connection lost, trying again");
            }
        }
        // Not all viewers at the same moment; but at once when the network is back.
        await new Promise((done) => {
            setTimeout(done, pause * (0.5 + Math.random()));
            addEventListener("online", done, { once: true });
        });
        pause = Math.min(pause * 2, 10000);
    }
}

// The server sends something at least every 15 seconds; longer silence is a dead connection.
const SILENCE = 40000;

async function stream(last, take) {
    const abort = new AbortController();
    const cut = () => abort.abort();
    addEventListener("offline", cut);
    let watchdog = setTimeout(cut, SILENCE);
    try {
        const response = await fetch("/api/v1/events", {
            headers: headers(last ? { "Last-Event-ID": last } : {}),
            cache: "no-store",
            signal: abort.signal,
        });
        if (!response.ok) throw new ApiError(response.status, (await response.json()).error);
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let rest = "";
        for (;;) {
            const { done, value } = await reader.read();
            if (done) return;
            clearTimeout(watchdog);
            watchdog = setTimeout(cut, SILENCE);
            const blocks = (rest + value).split("\n\n");
            rest = blocks.pop();
            for (const block of blocks) take(parse(block));
        }
    } finally {
        clearTimeout(watchdog);
        removeEventListener("offline", cut);
        cut();
    }
}

function parse(block) {
    const event = { id: "", name: "", data: "" };
    for (const line of block.split("\n")) {
        if (line.startsWith("id: ")) event.id = line.slice(4);
        if (line.startsWith("event: ")) event.name = line.slice(7);
        if (line.startsWith("data: ")) event.data += line.slice(6);
    }
    return event;
}

/** Says something to a screen reader. */
export function announce(text) {
    setText(byId("announce"), text);
}

const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" });
const day = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** A moment: the time today, otherwise the date too; the whole of it as a title. */
export function moment(text) {
    if (!text) return el("span", {}, "–");
    const date = new Date(text);
    const today = date.toDateString() === new Date().toDateString();
    return el("time", { datetime: text, title: day.format(date) }, today ? clock.format(date) : day.format(date));
}

/** A duration in words as short as they are clear. */
export function duration(from, to) {
    return from ? inWords(Math.max(0, (to ? new Date(to) : new Date()) - new Date(from))) : "–";
}

/** So many milliseconds. */
export function inWords(ms) {
    if (ms < 1000) return `${Number(ms.toFixed(ms < 10 ? 1 : 0))} ms`;
    const seconds = ms / 1000;
    if (seconds < 60) return `${seconds.toFixed(1)} s`;
    const minutes = Math.floor(seconds / 60);
    if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
    return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

const STATUS = { QUEUED: "waiting", RUNNING: "running", DONE: "done", FAILED: "failed", CANCELLED: "cancelled", TIMED_OUT: "timed out" };
export const statusText = (status) => STATUS[status] ?? status;
export const tag = (name, text) => el("span", { class: `tag ${name}` }, text);

/** What jobs of a type count, where it is not verdicts: rules of a check, services of a diff. */
const COUNTED = { check: ["as stated", "contradicted", "UNKNOWN"], diff: ["same", "changed", "UNKNOWN"] };

/** Whether a job asks in bulk: its answer is a report by sections. */
export const inBulk = (type) => ["check", "matrix", "diff"].includes(type);

/** What a job asks, in one line. */
export function question(params) {
    const asked = params.policy
        ? `${params.policy.name}, ${params.policy.rules} rules`
        : `${params.source ?? "networks"} → ${params.destination ?? "networks"}  ${params.ports}`;
    return params.before ? `${asked}, before: ${params.before}` : asked;
}

/** How many of which verdict, or of what else is counted; only those that there are. */
export function verdicts(counts, type) {
    const words = COUNTED[type] ?? ["YES", "NO", "UNKNOWN"];
    const parts = [["YES", counts.yes], ["NO", counts.no], ["UNKNOWN", counts.unknown]];
    const shown = parts.map(([look, count], index) => [look, count, words[index]]).filter(([, count]) => count > 0);
    return el("span", { class: "verdicts" }, ...shown.map(([look, count, word]) => tag(look, `${count} ${word}`)));
}

/** A progress bar that a screen reader reads as one. */
export function progressBar(label) {
    const bar = el("progress", { max: "100", value: "0", "aria-label": label });
    const text = el("span", { class: "num" }, "0 %");
    const node = el("div", { class: "progress" }, bar, text);
    node.show = (percent) => {
        if (bar.value !== percent) bar.value = percent;
        setText(text, `${percent} %`);
    };
    return node;
}

export const routersText = (params) => (params.routers ? params.routers.join(", ") : params.trace ? "as the trace" : "all of the way");

// What a job may be told beside its question, with the words of the form.
const OPTIONS = [
    ["from", "enters at"], ["trust_facts", "facts trusted"], ["default_proto", "default protocol"], ["sport", "source port"],
    ["probe_dscp", "probes have DSCP"], ["explain", "explain"], ["backend", "back end"], ["timeout", "timeout in s"],
    ["patient", "patient"], ["lock_timeout", "lock timeout in s"],
];

/** What a job was told beside its question, in words. */
export function optionsText(params) {
    const told = OPTIONS.filter(([name]) => params[name] !== undefined && params[name] !== false);
    return told.map(([name, words]) => (params[name] === true ? words : `${words} ${params[name]}`)).join(", ");
}

/** Asks before a job is cancelled, and cancels it. */
export async function cancelJob(runId) {
    const user = localStorage.getItem("tsim-user") || "viewer";
    if (!confirm(`Cancel ${runId}?`)) return;
    try {
        await withToken(() => api(`/jobs/${runId}/cancel`, { method: "POST", body: { username: user } }));
        announce(`${runId} is being cancelled`);
    } catch (error) {
        alert(`${runId} was not cancelled: ${error.message}`);
    }
}

const THEMES = ["auto", "light", "dark"];

function startTheme() {
    const button = byId("theme");
    const apply = (theme) => {
        if (theme === "auto") delete document.documentElement.dataset.theme;
        else document.documentElement.dataset.theme = theme;
        setText(button.lastChild, theme);
    };
    let theme = localStorage.getItem("tsim-theme") ?? "auto";
    apply(theme);
    button.addEventListener("click", () => {
        theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
        localStorage.setItem("tsim-theme", theme);
        apply(theme);
    });
}

/** The head and the dialogs that all pages share; call first. */
export function start(page) {
    const link = (href, name) => el("a", { href, "aria-current": page === name ? "page" : undefined }, name);
    // What was shown without the token may have more with it.
    const change = async () => {
        if (await askToken()) location.reload();
    };
    const head = el("header", { class: "bar" },
        el("a", { class: "skip", href: "#main" }, "Skip to content"),
        el("a", { class: "brand", href: "/" }, el("img", { src: "/assets/icon.svg", alt: "" }), el("span", { class: "wide-only" }, "tsim")),
        el("nav", { "aria-label": "Pages" }, link("/", "Queue"), link("/policies", "Policies"), link("/lab", "Lab")),
        el("span", { class: "space" }),
        el("span", { class: "live", id: "live", role: "status" }, "connecting"),
        el("button", { type: "button", id: "token-button", on: { click: change } }, "Token"),
        el("button", { type: "button", id: "theme" }, el("span", { class: "wide-only" }, "Theme: "), el("span", {}, "auto")));
    const take = async (event) => {
        event.preventDefault();
        const wrong = await useToken(byId("token-field").value.trim());
        setText(byId("token-message"), wrong);
        byId("token-message").hidden = !wrong;
        if (wrong) byId("token-field").focus();
        else dialog.close("ok");
    };
    const dialog = el("dialog", { id: "token-dialog", "aria-labelledby": "token-title" },
        el("form", { method: "dialog", on: { submit: take } },
            el("h2", { id: "token-title" }, "Token"),
            el("p", { class: "error", id: "token-message", role: "alert", hidden: true }),
            el("label", { for: "token-field" }, "The scheduler's token, as tsim token prints it for administrators; kept until this tab is closed"),
            el("input", { id: "token-field", type: "password", autocomplete: "off", spellcheck: "false" }),
            el("div", { class: "buttons" },
                el("button", { type: "button", on: { click: () => dialog.close("") } }, "Cancel"),
                el("button", { value: "ok", class: "primary" }, "Use token"))));
    document.body.prepend(head);
    document.body.append(dialog, el("div", { id: "announce", class: "visually-hidden", role: "status", "aria-live": "polite" }));
    startTheme();
    // A token that is wrong is said where the live stream is refused.
    whoami().catch(() => {});
}
