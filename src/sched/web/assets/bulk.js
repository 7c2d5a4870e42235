// All answers of a check or matrix as a table, or how those of two runs differ.
import { byId, el, live, setText, start } from "./common.js";
import { showDocument } from "./document.js";

start("Policies");

// /job/RUN/table, or /job/RUN/since/RUN
const [, , run, what, before] = location.pathname.split("/").map(decodeURIComponent);
const link = (name) => el("a", { href: `/job/${encodeURIComponent(name)}`, class: "mono" }, name);
const title = what === "table" ? "Answers" : "Changes";
setText(byId("title"), title);
document.title = `${title} of ${run} · tsim`;
byId("runs").append(...(what === "table" ? ["of ", link(run)] : ["from ", link(before), " to ", link(run)]));

const path = `/jobs/${encodeURIComponent(run)}/${what === "table" ? "table" : `since/${encodeURIComponent(before)}`}`;
showDocument(path, byId("document"), { all: true });
// The jobs are over: nothing changes, but that the scheduler may be away is shown.
live({ snapshot() {}, update() {} });
