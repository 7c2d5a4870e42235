// The HTML report of a check, as the golden test has it: one file, without anything from elsewhere.
import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { browser, fine, open, root, shoot } from "./site.mjs";

let chrome;
before(async () => { chrome = await browser(); });
after(async () => { await chrome.close(); });

test("a report of a check is found fault with by nobody, and can be filtered", async () => {
    const problems = [];
    const context = await chrome.newContext({ viewport: { width: 1400, height: 1000 }, colorScheme: "light" });
    const asked = [];
    context.on("request", (request) => asked.push(request.url()));
    const url = `file://${join(root, "src/bulk/render/golden/check.html")}`;
    const page = await open(context, url, problems);
    await fine(page, "report of a check");
    await shoot(page, "check-report", { phone: true });

    const shown = () => page.locator(".entry:visible").count();
    const all = await shown();
    await page.getByLabel("Find").fill("10.0.0.3");
    await page.getByText(`1 of ${all} entries`).waitFor();
    await page.getByLabel("Find").fill("");
    for (const box of await page.getByRole("checkbox").all()) await box.uncheck();
    await page.getByText(`0 of ${all} entries`).waitFor();
    assert.equal(await shown(), 0);
    // A name in facts or in a policy is text, whatever it looks like.
    assert.equal(await page.locator("summary script").count(), 0);
    assert.deepEqual(asked, [url]);
    assert.deepEqual(problems, []);
    await context.close();
});
