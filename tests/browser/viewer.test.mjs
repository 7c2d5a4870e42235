// The viewer in a real browser, against a real tsimd.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { accessible, browser, fine, open, row, shoot, site, TOKEN } from "./site.mjs";

let chrome;
before(async () => { chrome = await browser(); });
after(async () => { await chrome.close(); });

async function visit(options, viewport = { width: 1400, height: 1000 }) {
    const own = await site(options);
    const problems = [];
    const context = await chrome.newContext({ viewport, colorScheme: "light" });
    const url = `http://localhost:${own.port}`;
    const page = await open(context, `${url}/`, problems);
    const end = async () => {
        await context.close();
        await own.end();
        assert.deepEqual(problems, []);
    };
    return { own, page, context, url, problems, end };
}

test("eight quick jobs and a detailed one run together, live, in every way of looking", async () => {
    const { own, page, end } = await visit({ scheduler: "quick_jobs = 8" });
    for (let n = 1; n <= 8; n += 1) await own.submit({ run_id: `quick-${n}`, routers: ["hq-gw", "br-gw"] });
    await own.submit({ run_id: "detailed-1", mode: "detailed" });
    await own.submit({ run_id: "waiting-1", username: "<b>Zoë</b> & co" });
    await own.submit({ run_id: "failing", lab: "broken", mode: "detailed" });
    own.step("failing", 30);
    own.step("failing", 70);
    await row(page, "failing").getByText("failed").waitFor();
    await row(page, "quick-8").getByText("waiting for locks").waitFor();
    await row(page, "detailed-1").getByText("waiting for locks").waitFor();
    await row(page, "waiting-1").getByText("<b>Zoë</b> & co").waitFor();
    own.step("quick-1", 30);
    await row(page, "quick-1").getByText("30 %").waitFor();
    own.step("quick-2", 30);
    own.step("quick-2", 70);
    await row(page, "waiting-1").getByText("waiting for locks").waitFor();
    await row(page, "quick-2").getByText("5 YES").waitFor();
    assert.equal(await row(page, "quick-2").getByText("2 NO").count(), 1);
    await fine(page, "queue");
    await shoot(page, "queue", { phone: true });
    await end();
});

test("a job is submitted and cancelled with the keyboard, and only with the token", async () => {
    const { page, end } = await visit({ scheduler: "quick_jobs = 1" });
    await page.getByText("Nothing is running.").waitFor();
    await page.getByRole("button", { name: "Submit a job" }).focus();
    await page.keyboard.press("Enter");
    await page.getByLabel("Lab", { exact: true }).fill("corp10");
    await page.getByLabel("Source address").fill("10.1.1.1");
    await page.getByLabel("Destination address").fill("10.2.1.2");
    await page.getByLabel(/^Services/).fill("0");
    await page.getByLabel("Your name").fill("ann");
    await accessible(page, "submit dialog");
    await shoot(page, "submit");
    await page.keyboard.press("Enter");
    // The token is asked for; afterwards the server says what is wrong.
    await page.getByLabel(/token file/).fill(TOKEN);
    await page.keyboard.press("Enter");
    await page.getByText("port 0 is out of range").waitFor();
    await page.getByLabel(/^Services/).fill("80,443");
    await page.keyboard.press("Enter");
    const cancel = page.getByRole("button", { name: /^Cancel quick-/ });
    // It moves from the waiting jobs to the running ones, and its button with it.
    await page.getByText("waiting for locks").waitFor();
    page.on("dialog", (dialog) => dialog.accept());
    await cancel.focus();
    await page.keyboard.press("Enter");
    await page.getByRole("cell", { name: "cancelled by ann" }).waitFor();
    await page.getByText("Nothing is running.").waitFor();
    await end().catch((error) => {
        // The browser itself logs each refusal: of the missing token, and of port 0.
        const logged = String(error);
        assert.match(logged, /401/);
        assert.match(logged, /400/);
        assert.doesNotMatch(logged, /page error/);
    });
});

test("a job's page follows it to the result with its reasons", async () => {
    const { own, page, url, end } = await visit();
    await own.submit({ run_id: "r1" });
    await page.goto(`${url}/job/r1`);
    await page.getByText("waiting for locks").waitFor();
    await shoot(page, "job-running");
    await accessible(page, "job running");
    own.step("r1", 30);
    await page.getByText("installing taps").waitFor();
    // Reload in the middle: nothing is lost.
    await page.reload();
    await page.getByText("installing taps").waitFor();
    own.step("r1", 70);
    await page.getByText("<b>policy</b> DROP of chain FORWARD").waitFor();
    await page.getByText("2 rules could not be loaded").waitFor();
    // What would turn the writing or clear a screen is seen instead.
    await page.getByText("rule 3 \\u{202e}TPECCA\\u{1b}[2J").waitFor();
    await fine(page, "job result");
    await shoot(page, "job-result", { phone: true });
    await page.getByLabel("Verdict", { exact: true }).selectOption("UNKNOWN");
    assert.equal(await page.locator(".matrix tbody tr").count(), 1);
    await page.getByLabel("Find").fill("no such thing");
    await page.getByText("No service fits.").waitFor();
    await own.submit({ run_id: "d1", mode: "detailed", lab: "fast" });
    await page.goto(`${url}/job/d1`);
    await page.getByText("no answer within 2 s", { exact: true }).click();
    await page.getByText("-A FORWARD -s 10.1.0.0/16 -j DROP").first().waitFor();
    await fine(page, "detailed result");
    await shoot(page, "job-detailed", { phone: true });
    await end();
});

test("the page goes on where it stopped when the scheduler was away", async () => {
    const { own, page, problems, end } = await visit();
    await own.submit({ run_id: "before" });
    await row(page, "before").getByText("waiting for locks").waitFor();
    await own.restart();
    await own.submit({ run_id: "after", lab: "fast" });
    await row(page, "after").getByText("done").waitFor();
    await row(page, "before").getByText("waiting for locks").waitFor();
    own.step("before", 30);
    own.step("before", 70);
    await row(page, "before").getByText("done").waitFor();
    // The browser logs the broken connections; nothing else may have gone wrong.
    assert.ok(problems.every((problem) => /ERR_(CONNECTION|INCOMPLETE|EMPTY)/.test(problem)), problems.join("\n"));
    problems.length = 0;
    await end();
});
