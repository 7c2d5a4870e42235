// What a detailed job found out: connections, counters, the ways of packets, rule by rule.
import { el, tag } from "./common.js";

/** Shows what was found out about one service, router by router. */
export function showTests(tests) {
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
