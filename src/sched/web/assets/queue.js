// The queue: running and waiting jobs live, history, locks; cancel.
import {
    announce, api, byId, cancelJob, duration, el, inBulk, keyed, live, moment, progressBar, question, routersText,
    setText, start, statusText, tag, verdicts,
} from "./common.js";
import { startForm } from "./submit.js";

start("Queue");

const running = new Map();
const history = new Map();
let queue = { quick: 0, detailed: 0, check: 0, first: [] };
let scheduler = null;
let older = null;

const cell = (label, name, ...children) => el("td", { "data-label": label, class: name }, ...children);
const runCell = (job) => el("th", { scope: "row" }, el("a", { href: `/job/${job.run_id}`, class: "mono" }, job.run_id));
const cancelCell = (job) => el("td", { class: "act" },
    el("button", { type: "button", class: "danger needs-token", "aria-label": `Cancel ${job.run_id}`, on: { click: () => cancelJob(job.run_id) } }, "Cancel"));
const questionCell = (job) => {
    const node = cell("Question", "cut mono", question(job.params));
    node.title = `${question(job.params)} in lab ${job.params.lab}`;
    return node;
};

function show(name, count) {
    byId(`${name}-table`).hidden = count === 0;
    byId(`${name}-none`).hidden = count !== 0;
}

function createRunning(job) {
    const bar = progressBar(`Progress of ${job.run_id}`);
    const row = el("tr", {}, runCell(job),
        cell("Type", "", tag("", job.type)), cell("User", "cut", job.username), questionCell(job),
        cell("Routers", "cut", routersText(job.params)),
        cell("DSCP", "num", job.dscp === null ? "–" : String(job.dscp)),
        cell("Progress", "", bar), cell("Phase", "phase"), cell("Started", "", moment(job.started_at)),
        cell("Runs for", "num elapsed"), cancelCell(job));
    row.bar = bar;
    return row;
}

function updateRunning(row, job) {
    row.bar.show(job.percent);
    setText(row.querySelector(".phase"), job.cancelled_by ? `being cancelled by ${job.cancelled_by}` : job.phase);
    setText(row.querySelector(".elapsed"), duration(job.started_at));
    row.querySelector("button").disabled = Boolean(job.cancelled_by);
}

function showRunning() {
    const jobs = [...running.values()].sort((a, b) => a.started_at.localeCompare(b.started_at) || a.run_id.localeCompare(b.run_id));
    keyed(byId("running"), jobs, (job) => job.run_id, createRunning, updateRunning);
    setText(byId("running-count"), jobs.length ? String(jobs.length) : "");
    show("running", jobs.length);
}

function showWaiting() {
    const places = { quick: 0, detailed: 0, check: 0 };
    const jobs = queue.first.map((job) => ({ ...job, place: (places[inBulk(job.analysis_mode) ? "check" : job.analysis_mode] += 1) }));
    keyed(byId("waiting"), jobs, (job) => job.run_id, (job) => el("tr", {}, runCell(job),
        cell("Type", "", tag("", job.analysis_mode)), cell("Place", "num place"),
        cell("User", "cut", job.username), questionCell(job),
        cell("Routers", "cut", routersText(job.params)), cell("Submitted", "", moment(job.created_at)),
        cancelCell(job)),
    (row, job) => setText(row.querySelector(".place"), `#${job.place}`));
    const total = queue.quick + queue.detailed + queue.check;
    setText(byId("waiting-count"), total ? String(total) : "");
    show("waiting", total);
    const more = byId("waiting-more");
    more.hidden = total <= jobs.length;
    setText(more, `and ${total - jobs.length} more`);
}

function showHistory() {
    const jobs = [...history.values()].sort((a, b) => b.finished_at.localeCompare(a.finished_at));
    keyed(byId("history"), jobs, (job) => job.run_id, (job) => el("tr", {}, runCell(job),
        cell("Status", "", tag(job.status, statusText(job.status))), cell("Type", "", tag("", job.type)),
        cell("User", "cut", job.username), questionCell(job),
        cell("Result", "wrap", job.verdicts ? verdicts(job.verdicts, job.type) : job.reason ?? ""),
        cell("Ended", "", moment(job.finished_at)),
        cell("Took", "num", job.started_at ? duration(job.started_at, job.finished_at) : "–")),
    () => {});
    show("history", jobs.length);
    byId("history-more").hidden = older === null;
}

function showTiles() {
    if (!scheduler) return;
    const count = (type) => [...running.values()].filter((job) => job.type === type).length;
    const bulk = [...running.values()].filter((job) => inBulk(job.type)).length;
    const held = [...running.values()].filter((job) => job.dscp !== null).length;
    const tiles = [
        ["Quick running", count("quick"), `of ${scheduler.quick_jobs}`],
        ["Detailed running", count("detailed"), `of ${scheduler.detailed_jobs}`],
        ["Quick waiting", queue.quick, ""],
        ["Detailed waiting", queue.detailed, ""],
        ["Bulk running", bulk, `of ${scheduler.check_jobs}`],
        ["Bulk waiting", queue.check, ""],
        ["DSCP values in use", held, ""],
    ];
    keyed(byId("tiles"), tiles, (tile) => tile[0],
        (tile) => el("div", {}, el("dt", {}, tile[0]), el("dd", {}, el("span", {}), " ", el("small", {}, tile[2]))),
        (node, tile) => setText(node.querySelector("dd span"), String(tile[1])));
    const notice = byId("notice");
    notice.hidden = !scheduler.draining && !scheduler.waits_for_dscp;
    setText(notice, scheduler.draining
        ? "The scheduler was asked to stop: running jobs end, waiting jobs stay in the queue."
        : "Every DSCP value is held: quick jobs wait until one is free.");
}

function showAll() {
    showRunning();
    showWaiting();
    showTiles();
}

const wanted = () => byId("history-find").value.trim();

async function loadHistory() {
    const find = wanted();
    const page = await api(`/history?limit=50&find=${encodeURIComponent(find)}`);
    // Who types on has asked again meanwhile.
    if (find !== wanted()) return;
    history.clear();
    for (const job of page.jobs) history.set(job.run_id, job);
    older = page.next;
    setText(byId("history-none"), find ? "No job that is over fits." : "No job is over yet.");
    showHistory();
}

byId("history-find").addEventListener("input", loadHistory);
byId("more").addEventListener("click", async () => {
    const page = await api(`/history?limit=100&before=${older}&find=${encodeURIComponent(wanted())}`);
    for (const job of page.jobs) history.set(job.run_id, job);
    older = page.next;
    showHistory();
});

// Locks change many times per second when jobs run; twice per second is enough to look at.
let heldTimer = null;
function loadHeldSoon() {
    heldTimer ??= setTimeout(async () => {
        try {
            showHeld(await api("/registry"));
        } catch (error) {
            setText(byId("held-none"), `Cannot be read: ${error.message}`);
        } finally {
            heldTimer = null;
        }
    }, 500);
}

function showHeld(held) {
    const rows = [];
    for (const lock of held.locks) {
        const names = (waiting) => lock.holders.filter((h) => h.waiting === waiting).map((h) => `${h.run_id} (${h.mode})`).join(", ");
        rows.push([`lock ${lock.name}`, lock.name, "lock", names(false), names(true)]);
    }
    for (const lease of held.host_leases) rows.push([`host ${lease.name}`, lease.name, "host", lease.run_ids.join(", "), ""]);
    for (const lease of held.neighbour_leases) rows.push([`neighbour ${lease.name}`, lease.name, "neighbour", lease.run_ids.join(", "), ""]);
    for (const held_ of [...held.dscp].sort((a, b) => a.dscp - b.dscp)) rows.push([`dscp ${held_.dscp} ${held_.run_id}`, `DSCP ${held_.dscp}`, "DSCP value", held_.run_id, ""]);
    keyed(byId("held"), rows, (row) => row[0],
        () => el("tr", {}, el("th", { scope: "row", class: "mono" }), cell("Kind", ""), cell("Held by", "wrap mono"), cell("Waiting", "wrap mono")),
        (node, row) => [...node.children].forEach((child, index) => {
            setText(child, row[index + 1]);
            child.classList.toggle("empty", row[index + 1] === "");
        }));
    show("held", rows.length);
}

live({
    snapshot(all) {
        scheduler = all.scheduler;
        queue = all.queue;
        running.clear();
        for (const job of all.running) running.set(job.run_id, job);
        showAll();
        loadHistory();
        loadHeldSoon();
    },
    update(change) {
        if (change.scheduler) scheduler = change.scheduler;
        if (change.queue) queue = change.queue;
        for (const job of change.running ?? []) running.set(job.run_id, job);
        for (const job of change.ended ?? []) {
            running.delete(job.run_id);
            if (!wanted()) history.set(job.run_id, job);
        }
        if (change.ended) {
            const last = change.ended.at(-1);
            announce(change.ended.length === 1 ? `${last.run_id} ${statusText(last.status)}` : `${change.ended.length} jobs ended`);
            // A page that stays open for weeks starts over with the latest.
            if (history.size > 1000 || wanted()) loadHistory();
            else showHistory();
        }
        showAll();
        if (change.registry || change.ended || change.running) loadHeldSoon();
    },
});

// A job that enters a router's line changes no file that the scheduler watches.
setInterval(() => { if (running.size) loadHeldSoon(); }, 3000);

setInterval(() => {
    for (const row of byId("running").children) {
        const job = running.get(row.dataset.key);
        if (job) setText(row.querySelector(".elapsed"), duration(job.started_at));
    }
}, 1000);

startForm();
