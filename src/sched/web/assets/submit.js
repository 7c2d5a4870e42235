// The form that submits a job; what is wrong is said at the field that is wrong.
import { announce, api, ApiError, byId, el, setText, withToken } from "./common.js";

const dialog = byId("submit-dialog");
const form = byId("submit-form");

/** Fields in the order in which the form has them. */
const fields = () => [...form.elements].filter((field) => field.name);

/** What jobs of another type have is not offered. */
function showMode() {
    for (const part of form.querySelectorAll("[data-mode]")) part.hidden = !part.dataset.mode.split(" ").includes(byId("f-mode").value);
}

/** What the form asks for; an error names the field whose text is none of its kind. */
async function read() {
    const job = {};
    const mode = byId("f-mode").value;
    for (const field of fields()) {
        if (field.closest("[data-mode]")?.hidden) continue;
        const text = field.value.trim();
        if (field.type === "checkbox") {
            if (field.checked) job[field.name] = true;
        } else if (text === "") {
            if (field.required || field.dataset.needed?.split(" ").includes(mode)) throw new FieldError(field.name, "This is needed.");
        } else if (field.dataset.kind === "number") {
            if (!Number.isFinite(Number(text))) throw new FieldError(field.name, `${text} is no number.`);
            job[field.name] = Number(text);
        } else if (field.type === "file") {
            job[field.name] = await readPolicy(field.files[0]);
        } else if (field.name === "trace") {
            job.trace = parseTrace(text);
        } else if (field.name === "routers") {
            job.routers = text.split(",").map((name) => name.trim()).filter(Boolean);
        } else {
            job[field.name] = text;
        }
    }
    return job;
}

/** A policy with the text of all its files: the scheduler reads none of its own. */
async function readPolicy(main) {
    const files = [main, ...byId("f-includes").files];
    const texts = await Promise.all(files.map(async (file) => [file.name, await file.text()]));
    return { name: main.name, files: Object.fromEntries(texts) };
}

class FieldError extends Error {
    constructor(field, message) {
        super(message);
        this.field = field;
    }
}

function parseTrace(text) {
    try {
        return JSON.parse(text);
    } catch (error) {
        throw new FieldError("trace", `This is no JSON: ${error.message}`);
    }
}

function clear() {
    byId("submit-error").hidden = true;
    for (const field of fields()) {
        field.removeAttribute("aria-invalid");
        field.removeAttribute("aria-describedby");
    }
    for (const old of form.querySelectorAll(".field-error")) old.remove();
}

/** Says what is wrong at its field, or above the form where it is no field's. */
function complain(error) {
    const field = error.field && byId(`f-${error.field}`);
    if (!field) {
        setText(byId("submit-error"), error.message);
        byId("submit-error").hidden = false;
        return;
    }
    const id = `${field.id}-error`;
    field.closest("div").append(el("p", { class: "error field-error", id, role: "alert" }, error.message));
    field.setAttribute("aria-invalid", "true");
    field.setAttribute("aria-describedby", id);
    const hidden = field.closest("details");
    if (hidden) hidden.open = true;
    field.focus();
}

async function open() {
    clear();
    showMode();
    byId("f-username").value ||= localStorage.getItem("tsim-user") ?? "";
    dialog.showModal();
    try {
        const labs = await api("/labs");
        byId("labs").replaceChildren(...labs.map((lab) => el("option", { value: lab.lab })));
        if (labs.length === 1) byId("f-lab").value ||= labs[0].lab;
    } catch {
        // The list only helps typing.
    }
}

async function send(event) {
    event.preventDefault();
    clear();
    try {
        const job = await read();
        localStorage.setItem("tsim-user", job.username);
        const done = await withToken(() => api("/jobs", { method: "POST", body: job }));
        dialog.close();
        announce(`${done.run_id} waits as number ${done.position}`);
    } catch (error) {
        if (!(error instanceof ApiError) && !(error instanceof FieldError)) throw error;
        complain(error);
    }
}

/** Makes the button, the dialog and its form work. */
export function startForm() {
    byId("submit").addEventListener("click", open);
    byId("f-mode").addEventListener("change", showMode);
    byId("submit-cancel").addEventListener("click", () => dialog.close());
    form.addEventListener("submit", send);
}
