// The picture of a lab: routers and the segments that join them, the interfaces in between, and the
// way of a job on it. Small labs are laid out by springs, deep ones in layers, row by row.

const SVG = "http://www.w3.org/2000/svg";
function svg(tagName, attributes = {}, ...children) {
    const node = document.createElementNS(SVG, tagName);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
}

const routerId = (name) => `r ${name}`;
const membersOf = (segment) => [...new Set(segment.members.map((member) => member.router))];

/** Routers and the segments that join several of them; each link with its interfaces. */
function graph(lab) {
    const nodes = lab.routers.map((router) => ({ kind: "router", id: routerId(router.name), name: router.name }));
    const links = [];
    for (const [index, segment] of lab.segments.entries()) {
        const members = membersOf(segment);
        if (members.length < 2) continue;
        nodes.push({ kind: "segment", id: `s ${index}`, name: segment.name });
        for (const router of members) {
            const ports = segment.members.filter((member) => member.router === router).map((member) => member.interface);
            links.push({ router: routerId(router), segment: `s ${index}`, ports });
        }
    }
    return { nodes, links };
}

/** More steps than this from end to end, and the picture is laid out in layers. */
const DEEP = 13;
const WIDTH = 1200;
const HEIGHT = 560;
// Sizes of the springs' picture; the margins have room for a router at the edge and what stands around it.
const WIDE = { x: WIDTH, y: HEIGHT, margin: { x: 130, y: 74 }, stub: { x: 92, y: 52 } };
const TALL = { x: 480, y: 740, margin: { x: 84, y: 66 }, stub: { x: 70, y: 52 } };
// Sizes of the layers' picture: from one layer to the next, from one node of a layer to the next.
const STEP = { x: 122, y: 62 };
const EDGE = { x: 124, y: 66 };

/** How far each node is from `from`, along links. */
function distances(from, beside) {
    const far = new Map([[from, 0]]);
    for (const id of far.keys()) {
        for (const next of beside.get(id)) if (!far.has(next)) far.set(next, far.get(id) + 1);
    }
    return far;
}

/** The nodes by their distance from an end of the longest way; parts that hang on nothing come behind. */
function layers({ nodes, links }) {
    const beside = new Map(nodes.map((node) => [node.id, []]));
    for (const { router, segment } of links) {
        beside.get(router).push(segment);
        beside.get(segment).push(router);
    }
    const placed = new Map();
    const all = [];
    for (const { id } of nodes) {
        if (placed.has(id)) continue;
        const last = [...distances(id, beside).keys()].at(-1);
        const end = [...distances(last, beside).keys()].at(-1);
        // From the end that comes first by name, so that the picture does not turn around.
        const from = end < last ? end : last;
        const start = all.length;
        for (const [node, far] of distances(from, beside)) {
            (all[start + far] ??= []).push(node);
            placed.set(node, start + far);
        }
    }
    return all;
}

/** Layer beside layer, in rows that turn like lines of an ox plough; as wide as it is shown best. */
function layerLayout(picture, all, phone) {
    const at = new Map(picture.nodes.map((node) => [node.id, node]));
    const most = Math.max(...all.map((layer) => layer.length));
    const height = Math.max(1, most) * STEP.y + 44;
    const wide = phone ? 3 : Math.max(6, Math.ceil(Math.sqrt((2.2 * all.length * height) / STEP.x)));
    const columns = Math.min(all.length, wide);
    for (const [number, layer] of all.entries()) {
        const row = Math.floor(number / columns);
        const column = number % columns;
        const x = EDGE.x + (row % 2 ? columns - 1 - column : column) * STEP.x;
        for (const [slot, id] of layer.entries()) {
            const y = EDGE.y + row * height + ((most - layer.length) / 2 + slot) * STEP.y;
            Object.assign(at.get(id), { x, y });
        }
    }
    const rows = Math.ceil(all.length / columns);
    const size = { x: 2 * EDGE.x + (columns - 1) * STEP.x, y: 2 * EDGE.y + (rows - 1) * height + (most - 1) * STEP.y };
    return { at, size, stub: { x: 70, y: 46 } };
}

/** Stretches the picture to the drawing's size, which grows with the number of things in it. */
function fit(nodes, shape) {
    const scale = Math.max(1, Math.sqrt(nodes.length / 28));
    // On a phone it lies on its side.
    if (shape === TALL) for (const node of nodes) [node.x, node.y] = [node.y, node.x];
    for (const axis of ["x", "y"]) {
        const places = nodes.map((node) => node[axis]);
        const [low, high] = [Math.min(...places), Math.max(...places)];
        const room = shape[axis] * scale - 2 * shape.margin[axis];
        for (const node of nodes) node[axis] = shape.margin[axis] + ((node[axis] - low) / (high - low || 1)) * room;
    }
    return { x: shape.x * scale, y: shape.y * scale };
}

/** Springs along links, everything pushing everything apart; the same picture every time. */
function springLayout({ nodes, links }, phone) {
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
        for (const { router, segment } of links) {
            const [a, b] = [at.get(router), at.get(segment)];
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
    const shape = phone ? TALL : WIDE;
    return { at, size: fit(nodes, shape), stub: shape.stub };
}

/** Sets the networks of one router around it, each into the widest gap, so that the picture stays. */
function addStubs(lab, { nodes, links }, { at, stub }) {
    const angle = (from, to) => Math.atan2(at.get(to).y - at.get(from).y, at.get(to).x - at.get(from).x);
    const taken = new Map(lab.routers.map((router) => [routerId(router.name), []]));
    for (const { router, segment } of links) taken.get(router).push(angle(router, segment));
    for (const [index, segment] of lab.segments.entries()) {
        const [router, ...others] = membersOf(segment).map(routerId);
        if (!router || others.length) continue;
        const free = widestGap(taken.get(router));
        taken.get(router).push(free);
        const node = { kind: "stub", id: `s ${index}`, name: segment.name };
        Object.assign(node, { x: at.get(router).x + stub.x * Math.cos(free), y: at.get(router).y + stub.y * Math.sin(free) });
        at.set(node.id, node);
        nodes.push(node);
        links.push({ router, segment: node.id, ports: segment.members.map((member) => member.interface) });
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

/** Which links the legs of a way took, as `router interface`, and the number of each router on it. */
function trodden(way) {
    const ports = new Set();
    const numbers = new Map();
    for (const [index, leg] of (way ?? []).entries()) {
        for (const port of [leg.iface_in, leg.iface_out]) if (port) ports.add(`${routerId(leg.router)} ${port}`);
        numbers.set(leg.router, [...(numbers.get(leg.router) ?? []), index + 1]);
    }
    return { ports, numbers };
}

/**
 * Draws `lab` into `place` and returns the picture's own size. `shown` says what beside routers and
 * segments: `stubs`, interface `names`, the `way` of a job, and whether it is for a `phone`.
 */
export function drawMap(place, lab, shown) {
    const picture = graph(lab);
    const all = layers(picture);
    const deep = all.length > DEEP;
    const layout = deep ? layerLayout(picture, all, shown.phone) : springLayout(picture, shown.phone);
    if (shown.stubs) addStubs(lab, picture, layout);
    const on = trodden(shown.way);
    const lines = [];
    const ports = [];
    for (const link of picture.links) {
        const [a, b] = [layout.at.get(link.router), layout.at.get(link.segment)];
        const walked = link.ports.some((port) => on.ports.has(`${link.router} ${port}`));
        lines.push(svg("line", { class: walked ? "link walked" : "link", x1: a.x, y1: a.y, x2: b.x, y2: b.y }));
        if (shown.names || walked) ports.push(drawPorts(link, a, b));
    }
    // Routers last: nothing may hide them.
    const nodes = [...picture.nodes].sort((a, b) => (a.kind === "router") - (b.kind === "router"));
    place.setAttribute("viewBox", `0 0 ${layout.size.x} ${layout.size.y}`);
    place.replaceChildren(...lines.sort((a, b) => a.classList.contains("walked") - b.classList.contains("walked")), ...nodes.map((node) => drawNode(node, on)), ...ports);
    return { ...layout.size, deep };
}

/** The names of a link's interfaces, between the router's edge and the segment. */
function drawPorts(link, router, segment) {
    const [x, y] = [segment.x - router.x, segment.y - router.y];
    const length = Math.hypot(x, y) || 1;
    // As far from the router's middle as its box reaches in that direction, and some more.
    const reach = Math.min(boxWidth(router.name) / 2 / (Math.abs(x / length) || 0.01), 14 / (Math.abs(y / length) || 0.01));
    const far = Math.min(length - 8, reach + (length - reach) / 2 - 3);
    const upright = Math.abs(x) < Math.abs(y);
    const label = svg("text", { class: upright ? "port beside" : "port", x: router.x + (x / length) * far + (upright ? 5 : 0), y: router.y + (y / length) * far + (upright ? 3 : -5) });
    label.textContent = link.ports.join(", ");
    return label;
}

const boxWidth = (name) => Math.max(62, name.length * 7.4 + 18);

function drawNode(node, on) {
    const group = svg("g", { transform: `translate(${node.x} ${node.y})` });
    if (node.kind === "router") {
        const width = boxWidth(node.name);
        const text = svg("text", { y: 4 });
        text.textContent = node.name;
        group.append(svg("rect", { x: -width / 2, y: -14, width, height: 28, rx: 6 }), text, svg("title"));
        group.dataset.router = node.name;
        group.setAttribute("class", "router");
        const numbers = on.numbers.get(node.name);
        if (numbers) {
            const number = svg("text", { class: "number", x: 0, y: -19 });
            number.textContent = numbers.join(", ");
            group.append(number);
            group.dataset.walked = "";
        }
        return group;
    }
    const label = svg("text", { class: "small", y: node.kind === "stub" ? 14 : 18 });
    label.textContent = node.name;
    group.append(svg("circle", { class: node.kind, r: node.kind === "stub" ? 3 : 6 }), label);
    return group;
}
