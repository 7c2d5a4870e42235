// A scheduler of its own for each test: directory, configuration, fake runners, daemon.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

export const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
export const programs = join(root, process.env.TSIM_PROFILE ?? "target/debug");

const axe = readFileSync(new URL("./node_modules/axe-core/axe.min.js", import.meta.url), "utf8");

export const TOKEN = "5f0e1c2d3b4a59687786f5e4d3c2b1a0";

/** Starts tsimd over fake runners; `scheduler` are further lines of its table. */
export async function site({ scheduler = "", registry } = {}) {
    const dir = mkdtempSync(join(tmpdir(), "tsim-browser-"));
    const script = readFileSync(join(root, "tests/browser/runner.sh"), "utf8").replaceAll("SITE", dir);
    for (const name of ["tsim-quick", "tsim-detailed"]) {
        writeFileSync(join(dir, name), script);
        chmodSync(join(dir, name), 0o755);
    }
    mkdirSync(join(dir, "steps"));
    writeFileSync(join(dir, "token"), TOKEN, { mode: 0o600 });
    writeFileSync(join(dir, "tsim.toml"), [
        `registry_dir = "${registry ?? join(dir, "registry")}"`,
        "[scheduler]",
        `runner_dir = "${dir}"`,
        'listen = "127.0.0.1:0"',
        `token_file = "${join(dir, "token")}"`,
        scheduler,
    ].join("\n"));
    const self = { dir, port: 0 };
    self.start = async () => {
        self.daemon = spawn(join(programs, "tsimd"), ["--config", join(dir, "tsim.toml")], { stdio: ["ignore", "ignore", "pipe"] });
        const lines = createInterface(self.daemon.stderr);
        await new Promise((ready, failed) => {
            self.daemon.once("exit", (code) => failed(new Error(`tsimd ended with ${code}`)));
            lines.on("line", (line) => {
                const address = /serving the viewer address=127\.0\.0\.1:(\d+)/.exec(line);
                if (address) self.port = Number(address[1]);
                if (line.includes("leading")) ready();
            });
        });
    };
    /** The next daemon listens where the first one did, as a real one does. */
    self.restart = async () => {
        await self.kill();
        const file = join(dir, "tsim.toml");
        writeFileSync(file, readFileSync(file, "utf8").replace("127.0.0.1:0", `127.0.0.1:${self.port}`));
        await self.start();
    };
    self.kill = () => new Promise((done) => {
        self.daemon.removeAllListeners("exit");
        self.daemon.once("exit", done);
        self.daemon.kill("SIGKILL");
    });
    /** Lets the runner of a job go on to `percent`. */
    self.step = (runId, percent) => writeFileSync(join(dir, "steps", `${runId}.${percent}`), "");
    self.end = async () => {
        await self.kill();
        rmSync(dir, { recursive: true, force: true });
    };
    self.submit = async (job) => {
        const response = await fetch(`http://127.0.0.1:${self.port}/api/v1/jobs`, {
            method: "POST",
            headers: { "Content-Type": "application/json", Authorization: `Bearer ${TOKEN}` },
            body: JSON.stringify({ mode: "quick", lab: "corp10", source: "10.1.1.1", destination: "10.2.1.2", ports: "22,80,443/tcp,53/udp", username: "ann", ...job }),
        });
        if (!response.ok) throw new Error(await response.text());
    };
    if (!existsSync(join(programs, "tsimd"))) throw new Error(`build tsimd first: no ${programs}/tsimd`);
    await self.start();
    return self;
}

export async function browser() {
    return chromium.launch({
        executablePath: "/usr/bin/chromium",
        args: ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"],
    });
}

/** A page that fails the test when anything is logged as an error or refused by the CSP. */
export async function open(context, url, problems) {
    const page = await context.newPage();
    page.on("pageerror", (error) => problems.push(`page error: ${error}`));
    page.on("console", (message) => {
        if (message.type() === "error") problems.push(`console: ${message.text()}`);
    });
    await page.goto(url);
    return page;
}

/** What axe finds serious, in the page as it is. The checker is injected past the page's CSP. */
export async function accessible(page, what) {
    const session = await page.context().newCDPSession(page);
    const { frameTree } = await session.send("Page.getFrameTree");
    const { executionContextId } = await session.send("Page.createIsolatedWorld", { frameId: frameTree.frame.id });
    await session.send("Runtime.evaluate", { expression: axe, contextId: executionContextId });
    const { result } = await session.send("Runtime.evaluate", {
        expression: "axe.run(document, { resultTypes: ['violations'] }).then((r) => JSON.stringify(r.violations.map((v) => `${v.impact} ${v.id}: ${v.nodes.map((n) => n.html).join(' | ')}`)))",
        contextId: executionContextId, awaitPromise: true,
    });
    assert.deepEqual(JSON.parse(result.value), [], what);
}
