// The viewer in a real browser, against a real tsimd.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { accessible, browser, fine, open, row, shoot, site, TOKEN } from "./site.mjs";

let chrome;
before(async () => { chrome = await browser(); });
// What a test that failed left running would keep this process alive.
const running = new Set();
after(async () => {
    await chrome.close();
    await Promise.all([...running].map((own) => own.end()));
});

/** Somebody with the token of a site of its own, or `token` as given. */
async function visit({ token = TOKEN, ...options } = {}, viewport = { width: 1400, height: 1000 }) {
    const own = await site(options);
    running.add(own);
    const problems = [];
    const context = await chrome.newContext({ viewport, colorScheme: "light" });
    if (token) await context.addInitScript((text) => sessionStorage.setItem("tsim-token", text), token);
    const url = `http://localhost:${own.port}`;
    const page = await open(context, `${url}/`, problems);
    const end = async () => {
        await context.close();
        running.delete(own);
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
    await row(page, "quick-2").getByText("2 YES").waitFor();
    assert.equal(await row(page, "quick-2").getByText("2 NO").count(), 1);
    await fine(page, "queue");
    await shoot(page, "queue", { phone: true });
    await page.getByLabel("Find").fill("failing BROKEN");
    await row(page, "quick-2").waitFor({ state: "detached" });
    await row(page, "failing").getByText("failed").waitFor();
    await page.getByLabel("Find").fill("no such thing");
    await page.getByText("No job that is over fits.").waitFor();
    await end();
});

test("a job is submitted and cancelled with the keyboard, and only with the token", async () => {
    const { page, end } = await visit({ scheduler: "quick_jobs = 1", token: "" });
    await page.getByText("Nothing is running.").waitFor();
    // Nothing is offered that would be refused, and a wrong token is said at once.
    await page.getByText("take the token").waitFor();
    const submit = page.getByRole("button", { name: "Submit a job" });
    assert.equal(await submit.isVisible(), false);
    await fine(page, "queue without the token");
    await page.getByRole("button", { name: "Token" }).focus();
    await page.keyboard.press("Enter");
    await page.getByLabel(/scheduler's token/).fill("0123456789abcdef0123456789abcdef");
    await page.keyboard.press("Enter");
    await page.getByText("the token is wrong").waitFor();
    await accessible(page, "token dialog with an error");
    await shoot(page, "token-wrong");
    await page.getByLabel(/scheduler's token/).fill(TOKEN);
    // The page is loaded anew with the token, and what were pressed before that would be lost.
    let hold;
    const loadedAnew = new Promise((done) => { hold = done; });
    await page.route("**/", hold, { times: 1 });
    await page.keyboard.press("Enter");
    const route = await loadedAnew;
    assert.equal(await submit.isVisible(), false);
    await route.continue();
    await submit.waitFor();
    await submit.focus();
    await page.keyboard.press("Enter");
    await page.getByLabel("Lab", { exact: true }).fill("corp10");
    await page.getByLabel("Source address").fill("10.1.1.1");
    await page.getByLabel("Destination address").fill("10.2.1.2");
    await page.getByLabel(/^Services/).fill("0");
    await page.getByLabel("Your name").fill("ann");
    await accessible(page, "submit dialog");
    await shoot(page, "submit");
    await page.keyboard.press("Enter");
    // The server says what is wrong.
    await page.getByText("port 0 is out of range").waitFor();
    // Said at the field, where the cursor is.
    const services = page.getByLabel(/^Services/);
    assert.equal(await services.getAttribute("aria-describedby"), "f-ports-error");
    assert.equal(await services.evaluate((field) => field === document.activeElement), true);
    await accessible(page, "submit dialog with an error");
    await shoot(page, "submit-error", { phone: true });
    await services.fill("80,443");
    await page.getByLabel(/^Enters at/).fill("br-gw:a/b");
    await page.keyboard.press("Enter");
    await page.getByText("is no entry: ROUTER or ROUTER:INTERFACE").waitFor();
    await page.getByLabel(/^Enters at/).fill("br-gw");
    await page.getByLabel(/^Trust the facts/).check();
    await page.keyboard.press("Enter");
    const cancel = page.getByRole("button", { name: /^Cancel quick-/ });
    // It moves from the waiting jobs to the running ones, and its button with it.
    await page.getByText("waiting for locks").waitFor();
    page.on("dialog", (dialog) => dialog.accept());
    await cancel.focus();
    await page.keyboard.press("Enter");
    await page.getByRole("cell", { name: "it was cancelled by ann" }).waitFor();
    await page.getByText("Nothing is running.").waitFor();
    await end().catch((error) => {
        // The browser itself logs each refusal: of the wrong token, and of port 0.
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
    // From end to end first, then the matrix; what is not reached is in brackets.
    const ends = page.locator(".ends > li");
    await ends.first().waitFor();
    assert.equal(await ends.count(), 4);
    assert.match(await ends.nth(0).innerText(), /^NO 22\/tcp stops first at br-gw: <b>policy<\/b> DROP of chain FORWARD/);
    assert.match(await ends.nth(1).innerText(), /^YES 80\/tcp,443\/tcp arrives/);
    assert.match(await ends.nth(3).innerText(), /^UNKNOWN 161\/udp is not known at br-gw: rate-limited/);
    await ends.nth(0).getByText("Way, 2 routers").click();
    await ends.nth(0).getByText("10.1.1.1:40000 → 10.2.1.2:22, to 10.100.1.2").waitFor();
    const dns = page.getByRole("row", { name: /^53\/udp/ });
    await dns.getByText("(UNKNOWN)", { exact: true }).waitFor();
    await page.getByRole("button", { name: "Why 53/udp" }).click();
    await page.locator(".whys").getByText("--dport 53 -j DROP").waitFor();
    await page.getByText("2 rules could not be loaded").waitFor();
    // What would turn the writing or clear a screen is seen instead.
    await page.locator(".ends").getByText("rule 3 \\u{202e}TPECCA\\u{1b}[2J").waitFor();
    await fine(page, "job result");
    await shoot(page, "job-result", { phone: true });
    await page.getByLabel("Verdict", { exact: true }).selectOption("UNKNOWN");
    // The one at br-gw that is not reached is no UNKNOWN.
    await page.getByText("Lines 1 to 1 of 1").waitFor();
    await page.getByRole("rowheader", { name: /^161\/udp/ }).waitFor();
    await page.getByLabel("Find").fill("no such thing");
    await page.getByText("No service fits.").waitFor();
    await own.submit({ run_id: "d1", mode: "detailed", lab: "fast" });
    await page.goto(`${url}/job/d1`);
    await page.getByText("stops first at br-gw: dropped by rule 59 of chain FORWARD").waitFor();
    await page.locator("summary").filter({ hasText: "443/tcp" }).click();
    await page.getByText("no answer within 2 s", { exact: true }).click();
    await page.getByText("-A FORWARD -s 10.1.0.0/16 -j DROP").first().waitFor();
    await fine(page, "detailed result");
    await shoot(page, "job-detailed", { phone: true });
    await end();
});

test("a chain of thirty routers is drawn in layers, with zoom, interfaces and the way of a job", async () => {
    const { own, page, url, end } = await visit();
    await own.submit({ run_id: "long", lab: "chain", ports: "80,22" });
    own.ended("long");
    await page.goto(`${url}/job/long`);
    await page.getByText("Way, 30 routers").click();
    await page.getByRole("link", { name: "Show it on the lab" }).first().click();
    await page.getByText(/^80\/tcp: r01 → r02 → .* → r30: YES/).waitFor();
    const map = page.locator("#map");
    assert.equal(await map.locator(".router.walked").count(), 30);
    assert.equal(await map.locator("line.walked").count(), 58);
    // Every name is there to be read: none is over another, and none is cut off.
    const boxes = await map.locator(".router rect, .port").evaluateAll((all) => all.map((one) => {
        const { left, right, top, bottom } = one.getBoundingClientRect();
        return [left, right, top, bottom];
    }));
    assert.equal(boxes.length, 30 + 58);
    const over = boxes.filter((a, at) => boxes.slice(at + 1).some((b) => a[0] < b[1] && b[0] < a[1] && a[2] < b[3] && b[2] < a[3]));
    assert.deepEqual(over, []);
    const inside = await map.evaluate((picture) => {
        const frame = picture.getBoundingClientRect();
        return [...picture.querySelectorAll("text")].every((text) => {
            const box = text.getBoundingClientRect();
            return box.left >= frame.left && box.right <= frame.right && box.top >= frame.top && box.bottom <= frame.bottom;
        });
    });
    assert.equal(inside, true, "a name is cut off");
    await fine(page, "chain with a way");
    await shoot(page, "chain", { phone: true });
    // The other way ends at the second router.
    await page.getByLabel("Way of long").selectOption("NO 22/tcp");
    await page.getByText(/^22\/tcp: r01 → r02: NO, stops first at r02/).waitFor();
    assert.equal(await map.locator(".router.walked").count(), 2);
    // Larger, by keyboard, until it has to be scrolled; and whole again.
    const width = () => map.evaluate((picture) => picture.getBoundingClientRect().width);
    const whole = await width();
    await page.getByRole("button", { name: "Zoom in" }).focus();
    await page.keyboard.press("Enter");
    await page.keyboard.press("Enter");
    assert.ok((await width()) > whole * 1.9);
    assert.equal(await page.evaluate(() => document.documentElement.scrollWidth > innerWidth), false);
    await shoot(page, "chain-zoomed");
    await page.getByRole("button", { name: "Fit" }).click();
    assert.equal(await width(), whole);
    await page.getByRole("button", { name: "Interfaces" }).click();
    assert.equal(await map.locator(".port").count(), 2, "those of the way stay");
    await page.getByRole("button", { name: "Show end networks" }).click();
    assert.equal(await map.locator("circle.stub").count(), 30);
    await fine(page, "chain with end networks");
    await shoot(page, "chain-ends", { phone: true });
    await end();
});

test("without the token a job is seen, and its result is not", async () => {
    const { own, page, url, end } = await visit({ token: "" });
    await own.submit({ run_id: "r1", lab: "fast" });
    own.ended("r1");
    await page.goto(`${url}/job/r1`);
    await page.getByText("The result is for who has the token").waitFor();
    assert.equal(await page.getByRole("button", { name: "Download JSON" }).isVisible(), false);
    await fine(page, "job without the token");
    await shoot(page, "job-closed");
    await end();
});

test("what is not there is said on a page", async () => {
    const { page, url, problems, end } = await visit();
    await page.goto(`${url}/no/such/page`);
    await page.getByRole("heading", { name: "Nothing is at this address" }).waitFor();
    await fine(page, "missing page");
    await shoot(page, "missing", { phone: true });
    await page.getByRole("link", { name: "Queue", exact: true }).click();
    await page.getByRole("heading", { name: "Queue" }).waitFor();
    await page.goto(`${url}/job/nobody`);
    await page.getByText("there is no job nobody. Its name may be mistyped").waitFor();
    await fine(page, "missing job");
    // The browser logs each answer that says so.
    assert.ok(problems.every((problem) => /status of 404/.test(problem)), problems.join("\n"));
    problems.length = 0;
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
