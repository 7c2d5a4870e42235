// The policies that were checked of late and the matrices that were asked, each with its latest results by lab.
import { api, byId, el, live, moment, setText, start, statusText, tag, verdicts } from "./common.js";

start("Policies");

/** How the rules stand, or what became of the job. */
function standing(job) {
    if (job.verdicts) return [verdicts(job.verdicts, job.type)];
    return [tag(job.status, statusText(job.status)), job.reason ? ` ${job.reason}` : ""];
}

const address = (run, rest = "") => `/job/${encodeURIComponent(run)}${rest}`;

function showRun(job, before) {
    const since = before && job.verdicts ? el("a", { href: address(job.run_id, `/since/${encodeURIComponent(before.run_id)}`), "aria-label": `What changed from ${before.run_id} to ${job.run_id}` }, "changes") : "–";
    const table = job.verdicts ? el("a", { href: address(job.run_id, "/table"), "aria-label": `All answers of ${job.run_id}` }, "answers") : "–";
    return el("tr", {}, el("th", { scope: "row" }, el("a", { href: address(job.run_id), class: "mono" }, job.run_id)),
        el("td", { "data-label": "Result", class: "wrap" }, ...standing(job)),
        el("td", { "data-label": "Ended" }, moment(job.finished_at)), el("td", { "data-label": "User", class: "cut" }, job.username),
        el("td", { "data-label": "Answers" }, table), el("td", { "data-label": "Since the one before" }, since));
}

function showPolicy(held, index) {
    const done = held.runs.filter((job) => job.verdicts);
    const rows = held.runs.map((job) => showRun(job, done[done.indexOf(job) + 1]));
    const heads = ["Run", held.policy ? "Rules" : "Services", "Ended", "User", "Answers", "Since the one before"].map((name) => el("th", { scope: "col" }, name));
    const title = `policy-${index}`;
    return el("section", { class: "panel", "aria-labelledby": title },
        el("header", {}, el("h2", { id: title }, `${held.name} in ${held.lab}`), el("span", { class: "count" }, held.policy ? `${held.policy.rules} rules, ${held.policy.questions} questions` : "a matrix")),
        el("div", { class: "scroll", tabindex: "0", role: "group", "aria-labelledby": title },
            el("table", { class: "cards" }, el("thead", {}, el("tr", {}, ...heads)), el("tbody", {}, ...rows))));
}

async function load() {
    const { policies } = await api("/policies");
    byId("none").hidden = policies.length > 0;
    byId("policies").replaceChildren(...policies.map(showPolicy));
    setText(byId("count"), policies.length ? String(policies.length) : "");
}

live({
    snapshot: load,
    update(change) {
        if (change.ended?.some((job) => ["check", "matrix"].includes(job.type))) load();
    },
});
