// The lab: routers and the segments that join them, drawn, with who holds which router now.
import { api, ApiError, askToken, byId, el, keyed, live, setText, start, tag } from "./common.js";

start("Lab");

const SVG = "http://www.w3.org/2000/svg";
function svg(tagName, attributes = {}, ...children) {
    const node = document.createElementNS(SVG, tagName);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
}

let lab = null;
let stubs = false;
let locks = new Map();

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
    draw();
    showWarnings();
}

/** Routers and the segments that join several of them. */
function graph() {
    const nodes = lab.routers.map((router) => ({ kind: "router", id: `r ${router.name}`, name: router.name }));
    const links = [];
    for (const [index, segment] of lab.segments.entries()) {
        const members = membersOf(segment);
        if (members.length < 2) continue;
        nodes.push({ kind: "segment", id: `s ${index}`, name: segment.name });
        for (const router of members) links.push([`r ${router}`, `s ${index}`]);
    }
    return { nodes, links };
}

const membersOf = (segment) => [...new Set(segment.members.map((member) => member.router))];

/** Sets the networks of one router around it, each into the widest gap, so that the picture stays. */
function addStubs({ nodes, links }, at, away) {
    const angle = (from, to) => Math.atan2(at.get(to).y - at.get(from).y, at.get(to).x - at.get(from).x);
    const taken = new Map(lab.routers.map((router) => [`r ${router.name}`, []]));
    for (const [router, segment] of links) taken.get(router).push(angle(router, segment));
    for (const [index, segment] of lab.segments.entries()) {
        const [router, ...others] = membersOf(segment).map((name) => `r ${name}`);
        if (!router || others.length) continue;
        const free = widestGap(taken.get(router));
        taken.get(router).push(free);
        const node = { kind: "stub", id: `s ${index}`, name: segment.name };
        Object.assign(node, { x: at.get(router).x + away.x * Math.cos(free), y: at.get(router).y + away.y * Math.sin(free) });
        at.set(node.id, node);
        nodes.push(node);
        links.push([router, node.id]);
    }
}

/** The direction in the middle of the widest gap between directions; down where there are none. */
function widestGap(angles) {
    if (!angles.length) return Math.PI / 2;
    const sorted = [...angles].sort((a, b) => a - b);
    const gaps = sorted.map((from, index) => ({ from, size: (sorted[index + 1] ?? sorted[0] + 2 * Math.PI) - from }));
    const widest = gaps.reduce((best, gap) => (gap.size > best.size ? gap : best));
    return widest.from + widest.size / 2;
}

const WIDTH = 1200;
const HEIGHT = 560;
// Sizes of the drawing; the margins have room for a router at the edge and what stands around it.
const WIDE = { x: WIDTH, y: HEIGHT, margin: { x: 130, y: 74 }, stub: { x: 92, y: 52 } };
const TALL = { x: 480, y: 740, margin: { x: 84, y: 66 }, stub: { x: 70, y: 52 } };
const phone = matchMedia("(max-width: 760px)");
phone.addEventListener("change", () => lab && draw());

/** Stretches the picture to the drawing's size, which grows with the number of things in it. */
function fit(nodes, size) {
    const scale = Math.max(1, Math.sqrt(nodes.length / 28));
    // On a phone it lies on its side.
    if (size === TALL) for (const node of nodes) [node.x, node.y] = [node.y, node.x];
    for (const axis of ["x", "y"]) {
        const places = nodes.map((node) => node[axis]);
        const [low, high] = [Math.min(...places), Math.max(...places)];
        const room = size[axis] * scale - 2 * size.margin[axis];
        for (const node of nodes) node[axis] = size.margin[axis] + ((node[axis] - low) / (high - low || 1)) * room;
    }
    return `0 0 ${size.x * scale} ${size.y * scale}`;
}

/** Springs along links, everything pushing everything apart; the same picture every time. */
function layout({ nodes, links }) {
    const at = new Map(nodes.map((node) => [node.id, node]));
    nodes.forEach((node, index) => {
        const angle = (index / nodes.length) * 2 * Math.PI;
        const radius = node.kind === "router" ? 260 : 160;
        Object.assign(node, { x: WIDTH / 2 + 1.5 * radius * Math.cos(angle), y: HEIGHT / 2 + radius * Math.sin(angle), dx: 0, dy: 0 });
    });
    const steps = nodes.length > 150 ? 120 : 400;
    for (let step = 0; step < steps; step += 1) {
        const heat = 24 * (1 - step / steps) + 0.5;
        for (const a of nodes) for (const b of nodes) {
            if (a === b) continue;
            const [x, y] = [a.x - b.x || 0.1, a.y - b.y || 0.1];
            const push = 11000 / (x * x + y * y);
            a.dx += x * push;
            a.dy += y * push;
        }
        for (const [from, to] of links) {
            const [a, b] = [at.get(from), at.get(to)];
            const [x, y] = [b.x - a.x, b.y - a.y];
            const pull = 0.09 * (1 - 60 / Math.max(60, Math.hypot(x, y)));
            a.dx += x * pull; a.dy += y * pull;
            b.dx -= x * pull; b.dy -= y * pull;
        }
        for (const node of nodes) {
            node.dx += (WIDTH / 2 - node.x) * 0.012;
            node.dy += (HEIGHT / 2 - node.y) * 0.03;
            const length = Math.hypot(node.dx, node.dy) || 1;
            node.x += (node.dx / length) * Math.min(length, heat);
            node.y += (node.dy / length) * Math.min(length, heat);
            node.dx = node.dy = 0;
        }
    }
    return at;
}

function draw() {
    const picture = graph();
    const at = layout(picture);
    const map = byId("map");
    const size = phone.matches ? TALL : WIDE;
    map.setAttribute("viewBox", fit(picture.nodes, size));
    if (stubs) addStubs(picture, at, size.stub);
    const links = picture.links.map(([from, to]) => svg("line", { class: "link", x1: at.get(from).x, y1: at.get(from).y, x2: at.get(to).x, y2: at.get(to).y }));
    // Routers last: nothing may hide them.
    const nodes = [...picture.nodes].sort((a, b) => (a.kind === "router") - (b.kind === "router"));
    map.replaceChildren(...links, ...nodes.map(drawNode));
    setText(byId("map-count"), `${lab.routers.length} routers, ${lab.segments.length} segments`);
    showState();
}

function drawNode(node) {
    if (node.kind === "router") {
        const width = Math.max(70, node.name.length * 7.4 + 18);
        const group = svg("g", { class: "router", transform: `translate(${node.x} ${node.y})` },
            svg("rect", { x: -width / 2, y: -14, width, height: 28, rx: 6 }), svg("text", { y: 4 }), svg("title"));
        setText(group.querySelector("text"), node.name);
        group.dataset.router = node.name;
        return group;
    }
    const label = svg("text", { class: "small", y: node.kind === "stub" ? 14 : 18 });
    setText(label, node.name);
    return svg("g", { transform: `translate(${node.x} ${node.y})` }, svg("circle", { class: node.kind, r: node.kind === "stub" ? 3 : 6 }), label);
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
        group.setAttribute("class", `router ${state.kind}`);
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
live({ snapshot: loadLocksSoon, update: loadLocksSoon });
