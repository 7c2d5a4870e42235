// The lab: routers and the segments that join them, drawn, with who holds which router now.
import { api, ApiError, askToken, byId, el, keyed, live, setText, start, tag } from "./common.js";
import { drawMap } from "./map.js";

start("Lab");

let lab = null;
let stubs = false;
// Whether interfaces are named, once somebody has said so.
let names = null;
let ways = [];
let way = null;
let locks = new Map();

const asked = new URLSearchParams(location.search);
const wanted = decodeURIComponent(location.pathname.split("/")[2] ?? "");

async function loadLabs() {
    const labs = await api("/labs");
    byId("lab-none").hidden = labs.length > 0;
    const select = byId("lab-select");
    select.hidden = labs.length < 2;
    select.replaceChildren(...labs.map((entry) => el("option", { value: entry.lab }, entry.lab)));
    const first = labs.find((entry) => entry.lab === wanted) ?? labs[0];
    if (wanted && first?.lab !== wanted) setText(byId("lab-note"), `There is no lab ${wanted}.`);
    if (!first) return;
    select.value = first.lab;
    await loadLab(first.lab);
}

async function loadLab(name) {
    lab = await api(`/labs/${encodeURIComponent(name)}`);
    setText(byId("lab-note"), `${lab.lab}${lab.phase === "up" ? "" : `, ${lab.phase}`}${lab.missing.length ? `, ${lab.missing.length} namespaces are missing` : ""}`);
    for (const id of ["map-panel", "routers-panel"]) byId(id).hidden = false;
    byId("lab-drift").hidden = lab.drift.length === 0;
    byId("lab-drift-list").replaceChildren(...lab.drift.map((what) => el("li", {}, what)));
    // Once more when it is known whether it is deep, for then interfaces are named.
    draw();
    if (deep() && names === null) draw();
    showWarnings();
}

const phone = matchMedia("(max-width: 760px)");
phone.addEventListener("change", () => lab && draw());

/** How large the picture is, in its own size at 1; none until somebody says so: as wide as there is room. */
let zoom = null;
let size = null;

function draw() {
    size = drawMap(byId("map"), lab, { stubs, names: names ?? deep(), way: way?.way, phone: phone.matches });
    byId("names").setAttribute("aria-pressed", String(names ?? deep()));
    setText(byId("map-count"), `${lab.routers.length} routers, ${lab.segments.length} segments`);
    scale();
    showState();
}

// Interfaces are named from the start where there is room for it.
const deep = () => size?.deep ?? false;

/** Gives the picture its size; with `keep`, what was in the middle stays there. */
function scale(keep = false) {
    const view = byId("map-view");
    const room = view.clientWidth;
    const factor = zoom ?? Math.min(room / size.x, 1.25);
    const middle = [(view.scrollLeft + room / 2) / (view.scrollWidth || 1), (view.scrollTop + view.clientHeight / 2) / (view.scrollHeight || 1)];
    byId("map").setAttribute("width", Math.round(size.x * factor));
    byId("map").setAttribute("height", Math.round(size.y * factor));
    if (keep) view.scrollTo(middle[0] * view.scrollWidth - room / 2, middle[1] * view.scrollHeight - view.clientHeight / 2);
    setText(byId("zoom"), `${Math.round(factor * 100)} %`);
    return factor;
}

function zoomBy(factor) {
    zoom = Math.min(4, Math.max(0.1, scale(true) * factor));
    scale(true);
}

addEventListener("resize", () => { if (lab && zoom === null) scale(); });

/** The ways of a job, one for each end that has one, to be chosen from. */
async function loadJob(runId) {
    const select = byId("way-select");
    try {
        const head = await api(`/jobs/${encodeURIComponent(runId)}/answer`);
        ways = head.ends.map((end, index) => ({ ...end, index })).filter((end) => end.way?.length);
    } catch (error) {
        setText(byId("way-note"), `The way of ${runId} cannot be shown: ${error.message}`);
        return;
    }
    if (!ways.length) setText(byId("way-note"), `${runId} has no way that could be shown.`);
    select.replaceChildren(el("option", { value: "" }, "no way"), ...ways.map((end) => el("option", { value: String(end.index) }, `${end.result} ${end.services}`)));
    for (const id of ["way-select", "way-label"]) byId(id).hidden = !ways.length;
    setText(byId("way-label"), `Way of ${runId}`);
    const first = ways.find((end) => String(end.index) === asked.get("end")) ?? ways[0];
    choose(first);
}

function choose(end) {
    way = end ?? null;
    byId("way-select").value = way ? String(way.index) : "";
    const names = (way?.way ?? []).map((leg) => leg.router).join(" → ");
    setText(byId("way-note"), way ? `${way.services}: ${names}: ${way.result}, ${way.text}` : "");
    if (lab) draw();
}

/** Who holds a router: the words and the class for it. */
function stateOf(name) {
    const holders = locks.get(`${lab.lab}.${name}`) ?? [];
    const held = holders.filter((holder) => !holder.waiting);
    const waiting = holders.length > held.length;
    if (!held.length) return { kind: waiting ? "waiting" : "", text: waiting ? "waited for" : "free" };
    const kind = held.some((holder) => holder.mode === "exclusive") ? "exclusive" : "shared";
    const runs = held.map((holder) => holder.run_id).join(", ");
    return { kind: waiting ? `${kind} waiting` : kind, text: `${kind === "shared" ? "shared by" : "held by"} ${runs}` };
}

function neighbours(name) {
    const met = lab.segments.filter((segment) => segment.members.some((member) => member.router === name));
    const names = new Set(met.flatMap((segment) => segment.members.map((member) => member.router)));
    names.delete(name);
    return [...names].sort().join(", ");
}

function showState() {
    if (!lab) return;
    for (const group of byId("map").querySelectorAll(".router")) {
        const state = stateOf(group.dataset.router);
        group.setAttribute("class", `router ${state.kind}${group.dataset.walked === undefined ? "" : " walked"}`);
        group.querySelector("title").textContent = `${group.dataset.router}: ${state.text}`;
    }
    const cell = (label, name) => el("td", { "data-label": label, class: name });
    keyed(byId("routers"), lab.routers, (router) => router.name,
        (router) => el("tr", {}, el("th", { scope: "row", class: "mono" }, router.name), cell("State", "wrap state"), cell("Interfaces", "wrap mono"), cell("Rules", ""), cell("Neighbours", "wrap")),
        (row, router) => {
            setText(row.children[1], stateOf(router.name).text);
            const interfaces = router.interfaces.filter((port) => port.addresses.length).map((port) => `${port.name} ${port.addresses.join(" ")}`);
            setText(row.children[2], interfaces.slice(0, 8).join(", ") + (interfaces.length > 8 ? ` and ${interfaces.length - 8} more` : ""));
            if (!row.children[3].firstChild) row.children[3].append(router.ruleset_incomplete ? tag("UNKNOWN", "incomplete") : "complete");
            setText(row.children[4], neighbours(router.name));
        });
}

function showWarnings() {
    byId("warnings-panel").hidden = lab.warnings.length === 0;
    setText(byId("warnings-count"), String(lab.warnings.length));
    byId("warnings").replaceChildren(...lab.warnings.map((warning) => el("tr", {},
        el("th", { scope: "row", class: "mono", title: warning.where }, warning.where.split("/").at(-1)),
        el("td", { class: "wrap", "data-label": "What" }, warning.message))));
}

let timer = null;
function loadLocksSoon() {
    timer ??= setTimeout(async () => {
        try {
            const held = await api("/registry");
            locks = new Map(held.locks.map((lock) => [lock.name, lock.holders]));
            showState();
        } catch (error) {
            setText(byId("lab-note"), error.message);
        } finally {
            timer = null;
        }
    }, 300);
}

byId("lab-select").addEventListener("change", (event) => loadLab(event.target.value));
byId("stubs").addEventListener("click", (event) => {
    stubs = !stubs;
    event.target.setAttribute("aria-pressed", String(stubs));
    draw();
});
byId("names").addEventListener("click", () => {
    names = !(names ?? deep());
    draw();
});
byId("nearer").addEventListener("click", () => zoomBy(1.4));
byId("farther").addEventListener("click", () => zoomBy(1 / 1.4));
byId("whole").addEventListener("click", () => { zoom = null; scale(); });
byId("way-select").addEventListener("change", (event) => choose(ways.find((end) => String(end.index) === event.target.value)));

async function load() {
    try {
        await loadLabs();
    } catch (error) {
        if (error instanceof ApiError && error.status === 401 && (await askToken(error.message))) return load();
        setText(byId("lab-note"), error.message);
    }
}

// A job that enters a router's line changes no file that the scheduler watches.
setInterval(() => { if (locks.size) loadLocksSoon(); }, 3000);

await load();
if (asked.get("job") && lab) await loadJob(asked.get("job"));
live({ snapshot: loadLocksSoon, update: loadLocksSoon });
