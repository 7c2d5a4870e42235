// The answer of a job: from end to end first, then service by service and router by router.
import { api, ApiError, el, inWords, setText, tag } from "./common.js";
import { showTests } from "./evidence.js";

/** How many lines of the matrix are asked for at a time. */
const LINES = 100;
/** How many services of one folded line have their evidence listed. */
const SERVICES = 200;

/** Shows the answer of a job that is done. */
export async function showAnswer(runId, job, place) {
    const path = `/jobs/${encodeURIComponent(runId)}`;
    let head;
    try {
        head = await api(`${path}/answer`);
    } catch (error) {
        if (!(error instanceof ApiError) || error.status !== 404) throw error;
        place.replaceChildren(el("p", { class: "note" }, `It cannot be shown here: ${error.message}. Download it instead.`));
        return;
    }
    const warnings = head.warnings.map((warning) => el("p", { class: "notice" }, warning));
    place.replaceChildren(
        ...showEnds(head, job),
        ...(warnings.length ? [el("div", { class: "pad" }, ...warnings)] : []),
        ...(head.routers.length ? showMatrix(path, job, head) : []));
}

/** Each end with the services that come to it. */
function showEnds(head, job) {
    if (!head.ends.length) return [];
    const items = head.ends.map((end, index) => el("li", {},
        tag(end.result, end.result), " ", el("span", { class: "mono" }, end.services), ` ${end.text}`,
        end.way?.length ? showWay(end, `/lab/${encodeURIComponent(job.params.lab)}?${new URLSearchParams({ job: job.run_id, end: index })}`) : null));
    return [el("h3", { class: "within" }, head.scope === "named" ? "Through the named routers" : "From source to destination"),
        el("ul", { class: "ends" }, ...items)];
}

const at = (address, port) => (port === null || port === undefined ? address : address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`);

/** The routers that a packet really came to. */
function showWay(end, map) {
    const legs = end.way.map((leg) => el("li", {},
        el("strong", {}, leg.router), ` ${leg.iface_in ?? "itself"} → ${leg.iface_out ?? "not out"}`,
        el("span", { class: "count" }, ` ${at(leg.source, leg.sport)} → ${at(leg.destination, leg.dport)}${leg.next_hop ? `, to ${leg.next_hop}` : ""}`),
        leg.bridged ? el("span", { class: "count" }, ", bridged ") : null, leg.bridged ? tag(leg.bridged, leg.bridged) : null));
    const more = end.count > 1 ? " of the first of them" : "";
    return el("details", { class: "plain" }, el("summary", {}, `Way${more}, ${legs.length} router${legs.length === 1 ? "" : "s"}`), el("ol", { class: "way mono" }, ...legs), el("a", { href: map }, "Show it on the lab"));
}

function showMatrix(path, job, head) {
    const find = el("input", { id: "find", type: "search", placeholder: "443, udp, router, reason …", autocomplete: "off" });
    const verdict = el("select", { id: "verdict" }, ...["all", "YES", "NO", "UNKNOWN"].map((name) => el("option", { value: name }, name)));
    const body = el("tbody");
    const note = el("span", { class: "count", role: "status" });
    const back = el("button", { type: "button" }, "Previous");
    const on = el("button", { type: "button" }, "Next");
    const evidence = el("div");
    let offset = 0;
    let latest = 0;
    const draw = async () => {
        const mine = (latest += 1);
        const asked = new URLSearchParams({ offset, limit: LINES, find: find.value });
        if (verdict.value !== "all") asked.set("result", verdict.value);
        const page = await api(`${path}/matrix?${asked}`);
        // Somebody who types on has asked again meanwhile.
        if (mine !== latest) return;
        body.replaceChildren(...page.lines.flatMap((line) => matrixRows(line, page.reasons, head)));
        const last = Math.min(offset + LINES, page.total);
        setText(note, page.total === 0 ? "No service fits." : `Lines ${offset + 1} to ${last} of ${page.total}`);
        back.disabled = offset === 0;
        on.disabled = last >= page.total;
        if (job.type === "detailed") evidence.replaceChildren(...showEvidence(path, page.lines));
    };
    const turn = (by) => { offset = Math.max(0, offset + by); return draw(); };
    const again = () => { offset = 0; return draw(); };
    back.addEventListener("click", () => turn(-LINES));
    on.addEventListener("click", () => turn(LINES));
    find.addEventListener("input", again);
    verdict.addEventListener("change", again);
    draw();
    const measured = [head.backend && `measured with ${head.backend}`, head.total_ms !== undefined && `in ${inWords(head.total_ms)}`];
    return [
        el("div", { class: "filters" }, el("label", { for: "find" }, "Find"), find, el("label", { for: "verdict" }, "Verdict"), verdict,
            el("span", { class: "count" }, measured.filter(Boolean).join(" "))),
        el("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "Verdicts by service and router" },
            el("table", { class: "matrix" }, el("thead", {}, el("tr", {}, ...columns(head))), body)),
        el("div", { class: "filters foot" }, back, on, note,
            el("span", { class: "count" }, "(in brackets: not reached; what would become of the packet that was planned to come; it does not count)")),
        evidence,
    ];
}

function columns(head) {
    const routers = head.routers.map((router) => {
        const way = [router.iface_in, router.iface_out].map((name) => name ?? "–").join(" → ");
        return el("th", { scope: "col" }, router.name,
            el("span", { class: "why" }, router.next_hop ? `${way}, via ${router.next_hop}` : way),
            router.on_way ? null : el("span", { class: "why" }, "not on the way"));
    });
    return [el("th", { scope: "col" }, "Service"), ...(head.ends.length ? [el("th", { scope: "col" }, "End to end")] : []), ...routers];
}

/** A line, and the reasons behind it, which are there when they are asked for. */
function matrixRows(line, reasons, head) {
    const cells = line.cells.map((cell) => {
        if (!cell) return el("td", { class: "v" }, "–");
        return el("td", { class: "v" }, cell.reached ? tag(cell.result, cell.result) : el("span", { class: "off" }, `(${cell.result})`));
    });
    const end = line.result ? [el("td", { class: "v" }, tag(line.result, line.result))] : [];
    const whys = line.cells.flatMap((cell, index) => (cell?.reason === undefined ? [] : [[head.routers[index].name, cell, reasons[cell.reason]]]));
    const name = el("th", { scope: "row", class: "mono" }, line.services);
    const row = el("tr", {}, name, ...end, ...cells);
    if (!whys.length) return [row];
    const why = el("tr", { class: "whys", hidden: true }, el("td", { colspan: String(1 + end.length + cells.length) },
        el("ul", {}, ...whys.map(([router, cell, text]) => el("li", {}, el("strong", {}, router), ` ${cell.reached ? cell.result : `(${cell.result})`}: ${text}`)))));
    const button = el("button", { type: "button", class: "small", "aria-expanded": "false", "aria-label": `Why ${line.services}` }, "why");
    button.addEventListener("click", () => {
        why.hidden = !why.hidden;
        button.setAttribute("aria-expanded", String(!why.hidden));
    });
    name.append(" ", button);
    return [row, why];
}

/** The services of the page; what was found out about one is asked for when it is opened. */
function showEvidence(path, lines) {
    const services = lines.flatMap((line) => {
        const ports = Array.from({ length: Math.min(line.last - line.first + 1, SERVICES) }, (_, index) => line.first + index);
        return ports.map((port) => [`${port}/${line.protocol}`, line.result]);
    });
    if (!services.length) return [];
    const shown = services.slice(0, SERVICES);
    const items = shown.map(([service, result]) => {
        const place = el("div");
        const item = el("details", {}, el("summary", {}, el("strong", { class: "mono" }, service), " ", result ? tag(result, result) : null), place);
        item.addEventListener("toggle", async () => {
            if (!item.open || place.childElementCount) return;
            try {
                const found = await api(`${path}/evidence?service=${encodeURIComponent(service)}`);
                const tests = found.reachability_tests?.service?.result?.tests ?? [];
                const named = tests.map((test) => ({ ...test, port: found.summary?.destination_port, protocol: found.summary?.protocol }));
                place.replaceChildren(...showTests(named));
            } catch (error) {
                place.replaceChildren(el("p", { class: "error" }, error.message));
            }
        });
        return item;
    });
    const cut = services.length > shown.length ? [el("p", { class: "note" }, `The first ${SERVICES} services of these lines; the filter finds the others.`)] : [];
    return [el("h3", { class: "within" }, "Evidence by service"), ...items, ...cut];
}
