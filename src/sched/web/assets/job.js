// One job: its question, live progress, then the answer.
import { showAnswer } from "./answer.js";
import { showDocument } from "./document.js";
import {
    announce, api, ApiError, byId, cancelJob, duration, el, inBulk, live, moment, optionsText, progressBar, routersText,
    setText, start, statusText, tag, token, verdicts, whoami,
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
    byId("facts-panel").hidden = false;
    byId("status").replaceChildren(tag(job.status, job.status === "QUEUED" ? `waiting, number ${job.position}` : statusText(job.status)));
    const rows = [
        ["Type", job.type], ["User", job.username], ["Lab", job.params.lab], ["Before", job.params.before],
        ["From", job.params.source], ["To", job.params.destination], ["Networks", job.params.networks && "the end networks of the lab"], ["Services", job.params.ports],
        ["Policy", job.params.policy && `${job.params.policy.name}: ${job.params.policy.rules} rules, ${job.params.policy.questions} questions`],
        ["Routers", inBulk(job.type) ? "" : routersText(job.params)], ["Options", optionsText(job.params)], ["DSCP", job.dscp],
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
        const missing = error instanceof ApiError && error.status === 404;
        const expired = missing ? ". Its name may be mistyped, or its result was kept long enough; the queue's history can be searched." : "";
        byId("problem").replaceChildren(error.message + expired, ...(missing ? [" ", el("a", { href: "/" }, "To the queue")] : []));
        byId("problem").hidden = false;
    }
}

async function showEnd(job) {
    const { all_results: open } = await whoami();
    byId("result-closed").hidden = open;
    if (!open) {
        byId("result-panel").hidden = false;
        return;
    }
    if (job.status === "DONE") {
        byId("result-panel").hidden = false;
        byId("download").hidden = false;
        byId("report").hidden = job.type === "quick";
        if (inBulk(job.type)) {
            if (job.type === "check") byId("counts").append(el("a", { href: `/job/${encodeURIComponent(runId)}/table` }, "All answers"));
            await showDocument(`/jobs/${encodeURIComponent(runId)}/document`, byId("result"));
        } else {
            if (job.verdicts) byId("counts").append(verdicts(job.verdicts));
            await showAnswer(runId, job, byId("result"));
        }
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
