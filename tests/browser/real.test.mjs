// Real jobs in a real lab of ten routers, looked at in the browser: needs root, as a lab does.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { browser, fine, giveToken, open, programs, root, row, shoot, site } from "./site.mjs";

const lab = `t${process.pid}`;

let chrome;
before(async () => { chrome = await browser(); });
after(async () => { await chrome.close(); });

/** A detailed job, run by hand, that waits at br-gw for an answer that a rule drops. */
function holdRouter(own) {
    const holder = spawn(join(programs, "tsim-detailed"), [
        "--config", join(own.dir, "tsim.toml"), "--lab", lab, "-s", "10.1.1.100", "-d", "10.2.1.50", "-P", "8000",
        "--routers", "br-gw", "--run-id", "by-hand", "--timeout", "3600", "--patient",
    ], { stdio: "ignore" });
    const ended = new Promise((done) => { holder.once("exit", done); });
    // SIGKILL: the locks are free at once, and what else it had is the next one's to clear up.
    return { release: () => { holder.kill("SIGKILL"); return ended; } };
}

test("eight quick jobs and a detailed one: together, cancelled, reloaded, cut off, done", async () => {
    const own = await site({ real: true });
    own.tsim("lab", "up", lab, "--facts", join(root, "netns-fixtures/corp10"));
    const holder = holdRouter(own);
    try {
        await together(own, holder);
    } finally {
        await holder.release();
        for (const job of JSON.parse(own.tsim("queue", "--json")).running) own.ended(job.run_id);
        // What the killed one left is cleared up, and nothing else is left.
        own.tsim("reconcile");
        const left = JSON.parse(own.tsim("reconcile", "--dry-run", "--json")).actions;
        own.tsim("lab", "down", lab);
        await own.end();
        assert.deepEqual(left, []);
    }
});

async function together(own, holder) {
    const problems = [];
    const context = await chrome.newContext({ viewport: { width: 1400, height: 1000 }, colorScheme: "light", acceptDownloads: true });
    const url = `http://localhost:${own.port}`;
    const page = await open(context, `${url}/`, problems);
    page.on("dialog", (dialog) => dialog.accept());
    await giveToken(page);
    const held = page.getByRole("row").filter({ has: page.getByRole("rowheader", { name: `${lab}.br-gw`, exact: true }) });
    await held.getByText("by-hand (exclusive)").waitFor();

    const question = { lab, source: "10.1.1.100", destination: "10.2.1.50", ports: "22,80,443/tcp,53/udp", routers: ["br-gw", "hq-gw"] };
    for (let n = 1; n <= 7; n += 1) await own.submit({ ...question, run_id: `quick-${n}` });
    await own.submit({ ...question, run_id: "detailed-1", mode: "detailed" });
    const eighth = await submitByHand(page);
    const all = [...Array(7).keys()].map((n) => `quick-${n + 1}`).concat("detailed-1", eighth);
    for (const name of all) await row(page, name).getByText("waiting", { exact: true }).waitFor();
    await held.getByText(`${eighth} (shared)`).waitFor();
    await fine(page, "queue with real jobs");
    await shoot(page, "real-queue", { phone: true });
    await labPage(await open(context, `${url}/lab`, problems));
    await driftPage(own, () => open(context, `${url}/lab`, problems));

    // Reload in the middle, then cancel one.
    await page.reload();
    for (const name of all) await row(page, name).getByText("waiting", { exact: true }).waitFor();
    await page.getByRole("button", { name: "Cancel quick-7" }).click();
    await row(page, "quick-7").getByText("cancelled", { exact: true }).waitFor();

    // The page is cut off while all of them end; what it missed is told when it is back.
    await context.setOffline(true);
    await page.getByText("connection lost").waitFor();
    await holder.release();
    for (const name of all) own.ended(name);
    await context.setOffline(false);
    for (const name of all) await row(page, name).getByText(name === "quick-7" ? "cancelled" : "done", { exact: true }).waitFor();
    await page.getByText("Nothing is running.").waitFor();

    await results(page, url, eighth);
    // The browser logs that it was cut off, and that a router was refused; nothing else went wrong.
    const others = problems.filter((problem) => !/ERR_(INTERNET_DISCONNECTED|NETWORK|CONNECTION)|status of 400/.test(problem));
    assert.deepEqual(others, []);
    await context.close();
}

async function submitByHand(page) {
    await page.getByRole("button", { name: "Submit a job" }).click();
    const fields = { "Source address": "10.1.1.100", "Destination address": "10.2.1.50", "Your name": "ann" };
    for (const [name, value] of Object.entries(fields)) await page.getByLabel(name).fill(value);
    await page.getByLabel("Lab", { exact: true }).fill(lab);
    await page.getByLabel(/^Services/).fill("22,80,443/tcp,53/udp");
    await page.getByLabel(/^Routers/).fill("br-gw, no-such-router");
    await page.getByRole("button", { name: "Submit", exact: true }).click();
    await page.getByText("has no router no-such-router").waitFor();
    await page.getByLabel(/^Routers/).fill("br-gw, hq-gw");
    await page.getByRole("button", { name: "Submit", exact: true }).click();
    const link = page.getByRole("link", { name: /^quick-\d{8}T/ }).first();
    await link.waitFor();
    return link.textContent();
}

async function labPage(page) {
    await page.getByRole("cell", { name: "held by by-hand" }).waitFor();
    await page.getByRole("cell", { name: "free" }).first().waitFor();
    assert.equal(await page.locator("#map .router").count(), 10);
    assert.equal(await page.locator("#map .router.exclusive").count(), 1);
    assert.equal(await page.locator("#routers tr").count(), 10);
    await fine(page, "lab");
    await shoot(page, "lab", { phone: true });
    await page.getByRole("button", { name: "Show end networks" }).click();
    await fine(page, "lab with end networks");
    await shoot(page, "lab-ends", { phone: true });
    await page.close();
}

/** What somebody changed in a router is said on the lab's page, and no more when it is taken back. */
async function driftPage(own, visit) {
    const route = (what) => own.tsim("exec", lab, "hq-lab", "--", "ip", "route", what, "blackhole", "192.0.2.77/32");
    route("add");
    let page = await visit();
    await page.locator("#lab-drift-list").getByText("drift of hq-lab").first().waitFor();
    await page.getByText(`tsim lab reload ${lab} hq-lab`).waitFor();
    await fine(page, "lab that has drifted");
    await shoot(page, "lab-drift");
    await page.close();
    route("del");
    page = await visit();
    await page.getByRole("cell", { name: "held by by-hand" }).waitFor();
    assert.equal(await page.locator("#lab-drift").isVisible(), false);
    await page.close();
}

async function results(page, url, quick) {
    // The routers named are not those of the way, which ends before the destination.
    await row(page, quick).getByText("4 UNKNOWN").waitFor();
    await row(page, quick).getByRole("link").click();
    await page.locator(".ends > li").first().waitFor();
    await page.getByRole("button", { name: /^Why 22/ }).click();
    await page.locator(".whys").getByText("dropped by rule 59 of chain FORWARD").first().waitFor();
    await fine(page, "real quick result");
    await shoot(page, "real-quick", { phone: true });
    await page.goto(`${url}/job/detailed-1`);
    await page.locator("summary").filter({ hasText: "22/tcp" }).click();
    await page.locator("summary").filter({ hasText: "TIMEOUT" }).first().click();
    await page.getByText("-A FORWARD -j DROP", { exact: false }).first().waitFor();
    await fine(page, "real detailed result");
    await shoot(page, "real-detailed", { phone: true });
    const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download report" }).click()]);
    assert.equal(file.suggestedFilename(), "detailed-1.html");
    assert.match(readFileSync(await file.path(), "utf8"), /-A FORWARD -j DROP/);
}
