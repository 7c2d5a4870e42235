// What was asked in bulk: sections in words and a truth table, by page, with a search.
import { api, ApiError, el, setText, tag } from "./common.js";

/** Sections or rows of a page. */
const PART = 100;
// The look of an outcome, whatever its word is.
const LOOK = { bad: "NO", open: "UNKNOWN", good: "YES" };

/** Shows the document at an address of the API; `all` also how it came about. */
export async function showDocument(path, place, { all = false } = {}) {
    let first;
    try {
        first = await api(`${path}?limit=${PART}`);
    } catch (error) {
        if (!(error instanceof ApiError)) throw error;
        place.replaceChildren(el("p", { class: "note" }, `It cannot be shown here: ${error.message}.`));
        return null;
    }
    const find = el("input", { id: "find", type: "search", placeholder: "rule, address, service …", autocomplete: "off" });
    const note = el("span", { class: "count", role: "status" });
    const back = el("button", { type: "button" }, "Previous");
    const on = el("button", { type: "button" }, "Next");
    const body = el("div");
    let offset = 0;
    let latest = 0;
    const draw = (page) => {
        body.replaceChildren(...(page.columns.length ? [showTable(page)] : []), ...page.sections.map(showSection));
        const total = Math.max(page.total, page.rows_total);
        const last = Math.min(offset + PART, total);
        setText(note, total === 0 ? (find.value ? "Nothing fits." : "There is nothing to be said.") : `${offset + 1} to ${last} of ${total}`);
        back.disabled = offset === 0;
        on.disabled = last >= total;
    };
    const ask = async () => {
        const mine = (latest += 1);
        const page = await api(`${path}?${new URLSearchParams({ offset, limit: PART, find: find.value })}`);
        // Somebody who types on has asked again meanwhile.
        if (mine === latest) draw(page);
    };
    back.addEventListener("click", () => { offset = Math.max(0, offset - PART); return ask(); });
    on.addEventListener("click", () => { offset += PART; return ask(); });
    find.addEventListener("input", () => { offset = 0; return ask(); });
    const facts = first.about.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
    place.replaceChildren(
        el("p", { class: "note" }, first.summary),
        ...(all ? [el("div", { class: "pad" }, el("dl", { class: "facts" }, ...facts))] : []),
        ...(first.warnings.length ? [el("div", { class: "pad" }, ...first.warnings.map((warning) => el("p", { class: "notice" }, warning)))] : []),
        el("div", { class: "filters" }, el("label", { for: "find" }, "Find"), find),
        body,
        el("div", { class: "filters foot" }, back, on, note));
    draw(first);
    return first;
}

function showSection(section) {
    const about = section.about.map(([name, value]) => `${name} ${value}`).join(" · ");
    const items = section.items.map((item) => el("li", {}, el("strong", { class: "mono" }, item.what),
        ...item.answer.map((line) => el("div", {}, line))));
    const more = section.more ? [el("p", { class: "count" }, `and ${section.more} more; the report has all`)] : [];
    const content = items.length ? [el("ul", { class: "answers" }, ...items), ...more] : [el("p", { class: "count" }, `${section.questions} questions.`)];
    return el("details", { open: section.outcome !== "good" },
        el("summary", {}, tag(LOOK[section.outcome], section.word), " ", section.name),
        about ? el("p", { class: "count" }, about) : null, ...content);
}

function showTable(page) {
    const head = ["From", "To", ...page.columns].map((name) => el("th", { scope: "col" }, name));
    const rows = page.rows.map((row) => el("tr", {}, el("th", { scope: "row", class: "mono" }, row.source), el("td", { class: "mono" }, row.destination),
        ...row.cells.map((cell) => el("td", { class: "v" }, cell ? tag(cell, cell) : "–"))));
    return el("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": "All answers" },
        el("table", { class: "matrix" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows)));
}
