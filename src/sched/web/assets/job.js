// One job: its question, live progress, then the result with the reasons.
import {
    announce, api, ApiError, byId, cancelJob, duration, el, inWords, live, moment, progressBar, routersText,
    setText, start, statusText, tag, token, verdicts,
} from "./common.js";

start("Job");

const runId = decodeURIComponent(location.pathname.split("/").pop());
setText(byId("run-id"), runId);
document.title = `${runId} · tsim`;

const bar = progressBar(`Progress of ${runId}`);
byId("progress").append(bar);
let over = false;

function showJob(job) {
    byId("problem").hidden = true;
    byId("status").replaceChildren(tag(job.status, job.status === "QUEUED" ? `waiting, number ${job.position}` : statusText(job.status)));
    const rows = [
        ["Type", job.type], ["User", job.username], ["Lab", job.params.lab],
        ["From", job.params.source], ["To", job.params.destination], ["Services", job.params.ports],
        ["Routers", routersText(job.params)], ["DSCP", job.dscp],
        ["Submitted", moment(job.created_at)],
        ["Started", job.started_at && moment(job.started_at)],
        ["Ended", job.finished_at && moment(job.finished_at)],
        ["Took", job.finished_at && job.started_at && duration(job.started_at, job.finished_at)],
        ["Reason", job.reason],
    ];
    const shown = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
    byId("facts").replaceChildren(...shown.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, typeof value === "number" ? String(value) : value))));
    const running = job.status === "RUNNING";
    byId("cancel").hidden = !running && job.status !== "QUEUED";
    byId("progress-panel").hidden = !running;
    if (running) showProgress(job.percent ?? 0, job.phase ?? "");
}

function showProgress(percent, phase) {
    bar.show(percent);
    setText(byId("phase"), phase);
}

async function load() {
    try {
        const job = await api(`/jobs/${encodeURIComponent(runId)}`);
        showJob(job);
        if (job.finished_at && !over) {
            over = true;
            announce(`${runId} ${statusText(job.status)}`);
            await showEnd(job);
        }
    } catch (error) {
        setText(byId("problem"), error.message);
        byId("problem").hidden = false;
    }
}

async function showEnd(job) {
    if (job.status === "DONE") {
        const result = await api(`/jobs/${encodeURIComponent(runId)}/result`);
        byId("result-panel").hidden = false;
        byId("download").hidden = false;
        byId("report").hidden = job.type !== "detailed";
        if (job.verdicts) byId("counts").append(verdicts(job.verdicts));
        byId("result").replaceChildren(...showResult(result));
    }
    if (!job.started_at) return;
    const response = await ask("stderr");
    const text = response.ok ? await response.text() : "";
    byId("stderr-panel").hidden = !text.trim();
    setText(byId("stderr"), text.slice(-20000));
}

/** Asks for a file of the job; a plain link could not carry the token. */
const ask = (what) => fetch(`/api/v1/jobs/${encodeURIComponent(runId)}/${what}`, { headers: token() ? { Authorization: `Bearer ${token()}` } : {} });

async function download(what, name) {
    const response = await ask(what);
    if (!response.ok) {
        setText(byId("problem"), `${name} could not be had: ${response.status}`);
        byId("problem").hidden = false;
        return;
    }
    const address = URL.createObjectURL(await response.blob());
    el("a", { href: address, download: name }).click();
    URL.revokeObjectURL(address);
}

function showResult(result) {
    const warnings = (result.warnings ?? []).map((warning) => el("p", { class: "notice" }, typeof warning === "string" ? warning : JSON.stringify(warning)));
    const parts = warnings.length ? [el("div", { class: "pad" }, ...warnings)] : [];
    if (Array.isArray(result.routers)) parts.push(...showMatrix(result));
    const tests = (result.services ?? []).flatMap((service) => (service.reachability_tests?.service?.result?.tests ?? [])
        .map((found) => ({ ...found, port: service.summary?.destination_port, protocol: service.summary?.protocol })));
    if (tests.length) parts.push(el("h3", { class: "within" }, "Evidence"), ...showTests(tests));
    if (!parts.length) parts.push(el("div", { class: "pad" }, el("pre", { tabindex: "0" }, JSON.stringify(result, null, 2))));
    return parts;
}

// A line stands for neighbouring services with the same answer on every router.
const LINES = 500;

function linesOf(result) {
    const lines = [];
    const services = result.routers[0]?.services ?? [];
    services.forEach((service, index) => {
        const answers = result.routers.map((router) => router.services[index]);
        const same = JSON.stringify(answers.map((answer) => [answer?.result, answer?.reason]));
        const last = lines.at(-1);
        if (last && last.same === same && last.protocol === service.protocol && last.to + 1 === service.port) last.to = service.port;
        else lines.push({ from: service.port, to: service.port, protocol: service.protocol, answers, same });
    });
    return lines;
}

function showMatrix(result) {
    const lines = linesOf(result);
    const body = el("tbody");
    const note = el("p", { class: "note", role: "status" });
    const find = el("input", { id: "find", type: "search", placeholder: "443, udp, reason …", autocomplete: "off" });
    const verdict = el("select", { id: "verdict" }, ...["all", "YES", "NO", "UNKNOWN"].map((name) => el("option", { value: name }, name)));
    const draw = () => {
        const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
        const fits = (line) => {
            const text = `${line.from} ${line.to} ${line.protocol} ${line.same}`.toLowerCase();
            const inRange = (word) => /^\d+$/.test(word) && line.from <= Number(word) && Number(word) <= line.to;
            return words.every((word) => text.includes(word) || inRange(word))
                && (verdict.value === "all" || line.answers.some((answer) => answer?.result === verdict.value));
        };
        const found = lines.filter(fits);
        body.replaceChildren(...found.slice(0, LINES).map(matrixRow));
        note.hidden = found.length <= LINES && found.length > 0;
        setText(note, found.length === 0 ? "No service fits." : `${LINES} of ${found.length} lines; the filter narrows them down.`);
    };
    find.addEventListener("input", draw);
    verdict.addEventListener("change", draw);
    draw();
    const heads = result.routers.map((router) => {
        const way = [router.iface_in, router.iface_out].map((name) => name ?? "–").join(" → ");
        return el("th", { scope: "col" }, router.name, el("span", { class: "why" }, router.next_hop ? `${way}, via ${router.next_hop}` : way));
    });
    return [
        el("div", { class: "filters" }, el("label", { for: "find" }, "Find"), find, el("label", { for: "verdict" }, "Verdict"), verdict,
            el("span", { class: "count" }, [result.backend && `measured with ${result.backend}`, result.timing_ms?.total !== undefined && `in ${inWords(result.timing_ms.total)}`].filter(Boolean).join(" "))),
        el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Verdicts by service and router" },
            el("table", { class: "matrix" }, el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Service"), ...heads)), body)),
        note,
    ];
}

function matrixRow(line) {
    const ports = line.from === line.to ? String(line.from) : `${line.from}–${line.to}`;
    return el("tr", {}, el("th", { scope: "row", class: "mono" }, `${ports}/${line.protocol}`),
        ...line.answers.map((answer) => el("td", { class: "v" }, tag(answer?.result ?? "", answer?.result ?? "–"),
            answer?.reason ? el("span", { class: "why" }, answer.reason) : null)));
}

function showTests(tests) {
    return tests.map((found) => {
        const rules = (name, list) => (list?.length ? [el("h3", {}, name), ruleTable(name, list)] : []);
        const way = [found.incoming_interface, found.outgoing_interface].filter(Boolean).join(" → ");
        const service = [found.port, found.protocol].filter((part) => part !== undefined && part !== null).join("/");
        const nat = (found.nat ?? []).map((entry) => el("p", { class: "mono" }, `${entry.direction}: ${flow(entry.before)} becomes ${flow(entry.after)}`));
        return el("details", {},
            el("summary", {}, tag(found.status, found.status), " ", el("strong", {}, found.via_router ?? ""), ` ${service} ${way} `, el("span", { class: "count" }, found.message ?? "")),
            ...rules("Blocked by", found.blocking_rules), ...rules("Allowed by", found.allowing_rules), ...rules("Touched by", found.touched_rules),
            ...(found.trace ?? []).map(packetWay),
            ...(nat.length ? [el("h3", {}, "Address translation"), ...nat] : []),
            ...(found.warnings ?? []).map((warning) => el("p", { class: "notice" }, warning)),
            el("details", {}, el("summary", {}, "All of it as JSON"), el("pre", { tabindex: "0" }, JSON.stringify(found, null, 2))));
    });
}

const end = (address, port) => (port === null || port === undefined ? address : address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`);
const flow = (headers) => `${end(headers.source, headers.source_port)} → ${end(headers.destination, headers.destination_port)}`;
const count = (value) => (value === null || value === undefined ? "–" : String(value));

function ruleTable(name, rules) {
    const heads = [["Chain", ""], ["Rule", ""], ["Packets before", "num"], ["after", "num"], ["more", "num"]].map(([head, kind]) => el("th", { scope: "col", class: kind }, head));
    const rows = rules.map((rule) => el("tr", {},
        el("th", { scope: "row", class: "mono" }, [rule.family, rule.table, rule.chain, rule.position && `#${rule.position}`].filter(Boolean).join(" ")),
        el("td", { class: "wrap mono" }, rule.rule),
        ...[["Before", rule.packets_before], ["After", rule.packets_after], ["More", rule.packet_increase]]
            .map(([label, packets]) => el("td", { class: "num", "data-label": label }, count(packets)))));
    return el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": name }, el("table", { class: "cards" }, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows)));
}

function packetWay(way) {
    const steps = (way.steps ?? []).map((step) => el("li", { class: "mono" },
        [step.hook, step.family, step.table, step.chain].filter(Boolean).join(" "), step.rule ? `: ${step.rule}` : "", step.verdict ? ` → ${step.verdict}` : ""));
    return el("div", {}, el("h3", {}, `${way.direction} ${way.packet}: ${way.end}${way.count > 1 ? ` (${way.count} packets)` : ""}`), el("ol", { class: "way" }, ...steps));
}

byId("cancel").addEventListener("click", () => cancelJob(runId));
byId("download").addEventListener("click", () => download("result", `${runId}.json`));
byId("report").addEventListener("click", () => download("report", `${runId}.html`));

let waits = false;
live({
    snapshot: load,
    update(change) {
        if (over) return;
        const mine = change.running?.find((job) => job.run_id === runId);
        const ended = change.ended?.some((job) => job.run_id === runId);
        if (mine && !byId("progress-panel").hidden) showProgress(mine.percent, mine.phase);
        // Its place in the queue moves with every change; once per second is enough to look at.
        if (ended || (mine && byId("progress-panel").hidden)) load();
        else if (change.queue && !waits && byId("progress-panel").hidden) {
            waits = true;
            setTimeout(() => { waits = false; load(); }, 1000);
        }
    },
}).catch((error) => { if (!(error instanceof ApiError)) throw error; });
