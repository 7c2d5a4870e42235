// A scheduler of its own for each test: directory, configuration, fake runners, daemon.
import assert from "node:assert/strict";
import { execFileSync, spawn, spawnSync } from "node:child_process";
import { chmodSync, existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

import { chromium } from "playwright-core";

export const root = join(dirname(fileURLToPath(import.meta.url)), "../..");
export const programs = join(process.env.CARGO_TARGET_DIR ?? join(root, "target"), "debug");

const axe = readFileSync(new URL("./node_modules/axe-core/axe.min.js", import.meta.url), "utf8");

export const TOKEN = "5f0e1c2d3b4a59687786f5e4d3c2b1a0";

/** Runners that go on when the test says so, and the files of labs that they never look at. */
function pretend(dir) {
    const script = readFileSync(join(root, "tests/browser/runner.sh"), "utf8").replaceAll("SITE", dir).replaceAll("REPO", root);
    for (const name of ["tsim-quick", "tsim-detailed", "tsim"]) {
        writeFileSync(join(dir, name), script);
        chmodSync(join(dir, name), 0o755);
    }
    mkdirSync(join(dir, "steps"));
    const boot = readFileSync("/proc/sys/kernel/random/boot_id", "utf8").trim();
    mkdirSync(join(dir, "registry"), { mode: 0o700 });
    const state = (lab, routers, segments) => {
        mkdirSync(join(dir, "registry/labs", lab), { recursive: true, mode: 0o700 });
        writeFileSync(join(dir, "registry/labs", lab, "lab.json"), JSON.stringify({
            version: 2, lab, phase: "up", created_at: "2026-01-01T00:00:00Z", boot_id: boot, facts: "/nowhere",
            legacy: false, segments_netns: null, segments, warnings: [],
            routers: routers.map((name) => ({ name, netns: null, ruleset_incomplete: false, interfaces: [] })),
        }));
    };
    for (const lab of ["corp10", "fast", "broken"]) state(lab, ["br-gw", "hq-gw"], []);
    state("chain", CHAIN, CHAIN.flatMap((name, index) => {
        const next = CHAIN[index + 1];
        const stub = { name: `10.${index + 1}.0.0/24`, members: [[name, "lan0"]] };
        return next ? [stub, { name: `10.200.${index}.0/30`, members: [[name, "eth1"], [next, "eth0"]] }] : [stub];
    }));
}

/** The routers of a lab in a row. */
export const CHAIN = Array.from({ length: 30 }, (_, index) => `r${String(index + 1).padStart(2, "0")}`);

/** Starts tsimd, over fake runners unless `real`; `scheduler` are further lines of its table. */
export async function site({ scheduler = "", real = false } = {}) {
    const dir = mkdtempSync(join(tmpdir(), "tsim-browser-"));
    if (!real) pretend(dir);
    writeFileSync(join(dir, "token"), TOKEN, { mode: 0o600 });
    writeFileSync(join(dir, "tsim.toml"), [
        `registry_dir = "${join(dir, "registry")}"`,
        // A test decides how long somebody waits, not a clock.
        "lock_timeout_seconds = 900.0",
        "[scheduler]",
        `runner_dir = "${real ? programs : dir}"`,
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
        if (self.daemon.exitCode !== null || self.daemon.signalCode !== null) done();
        self.daemon.removeAllListeners("exit");
        self.daemon.once("exit", done);
        self.daemon.kill("SIGKILL");
    });
    self.tsim = (...args) => execFileSync(join(programs, "tsim"), ["--config", join(dir, "tsim.toml"), ...args], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
    /** Sleeps until a job is over, however it ended. */
    self.ended = (runId) => spawnSync(join(programs, "tsim"), ["--config", join(dir, "tsim.toml"), "watch", runId]);
    /** Lets the runner of a job go on to `percent`. */
    self.step = (runId, percent) => writeFileSync(join(dir, "steps", `${runId}.${percent}`), "");
    self.end = async () => {
        await self.kill();
        rmSync(dir, { recursive: true, force: true });
    };
    self.submit = (job) => self.post({ mode: "quick", lab: "corp10", source: "10.1.1.1", destination: "10.2.1.2", ports: "22,80,443/tcp,53/udp", username: "ann", ...job });
    self.post = async (job) => {
        const response = await fetch(`http://127.0.0.1:${self.port}/api/v1/jobs`, {
            method: "POST",
            headers: { "Content-Type": "application/json", Authorization: `Bearer ${TOKEN}` },
            body: JSON.stringify(job),
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

export async function giveToken(page) {
    await page.getByRole("button", { name: "Token" }).click();
    await page.getByLabel(/scheduler's token/).fill(TOKEN);
    await page.getByRole("button", { name: "Use token" }).click();
    await page.getByRole("button", { name: "Submit a job" }).waitFor();
}

export const row = (page, name) => page.getByRole("row").filter({ has: page.getByRole("link", { name, exact: true }) });

/** Where asked for, pictures in both colour schemes; `phone` at its width too. */
export async function shoot(page, name, { phone = false } = {}) {
    const shots = process.env.TSIM_SCREENSHOTS;
    if (!shots) return;
    mkdirSync(shots, { recursive: true });
    const before = page.viewportSize();
    for (const [suffix, size] of [["", before], ...(phone ? [["-phone", PHONE]] : [])]) {
        await page.setViewportSize(size);
        for (const colorScheme of ["light", "dark"]) {
            await page.emulateMedia({ colorScheme });
            await page.screenshot({ path: `${shots}/${name}${suffix}-${colorScheme}.png`, fullPage: true });
        }
    }
    await page.setViewportSize(before);
    await page.emulateMedia({ colorScheme: "light" });
}

export const PHONE = { width: 390, height: 844 };

/** In both colour schemes and on a phone: axe finds nothing serious, and nothing is wider than it. */
export async function fine(page, what) {
    const before = page.viewportSize();
    for (const colorScheme of ["dark", "light"]) {
        await page.emulateMedia({ colorScheme });
        await accessible(page, `${what}, ${colorScheme}`);
    }
    await page.setViewportSize(PHONE);
    await accessible(page, `${what}, phone`);
    const wide = await page.evaluate(() => document.documentElement.scrollWidth > innerWidth);
    assert.equal(wide, false, `${what} is wider than a phone`);
    await page.setViewportSize(before);
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
