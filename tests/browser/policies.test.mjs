// Policies, all answers of a check and what changed between two: over fake runners.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";

import { accessible, browser, fine, giveToken, open, shoot, site } from "./site.mjs";

let chrome;
before(async () => { chrome = await browser(); });
after(async () => { await chrome.close(); });

const POLICY = `version = 1
[[rule]]
name = "the office reaches the web"
from = "10.1.1.1"
to = "10.2.1.2"
services = "443"
must = "pass"
`;

test("a policy is listed with its results; a check, its answers and changes can be looked at", async () => {
    const own = await site();
    const problems = [];
    const context = await chrome.newContext({ viewport: { width: 1400, height: 1000 }, colorScheme: "light" });
    const url = `http://localhost:${own.port}`;
    try {
        const page = await open(context, `${url}/policies`, problems);
        await page.getByText("No policy was checked of late").waitFor();
        for (const run_id of ["before", "after"]) {
            await own.post({ mode: "check", lab: "fast", username: "ann", run_id, policy: { name: "policy.toml", files: { "policy.toml": POLICY } } });
            own.ended(run_id);
        }
        // Results are for who has the token; that a policy was checked is for all.
        await page.getByRole("heading", { name: "policy.toml in fast" }).waitFor();
        const queue = await open(context, `${url}/`, problems);
        await giveToken(queue);
        await queue.getByRole("row").filter({ hasText: "after" }).getByText("1 contradicted").waitFor();
        await queue.getByRole("link", { name: "Policies" }).click();
        await queue.getByText("1 contradicted").waitFor();
        await fine(queue, "policies");
        await shoot(queue, "policies", { phone: true });

        await queue.getByRole("link", { name: "What changed from before to after" }).click();
        await queue.getByRole("heading", { name: "Changes" }).waitFor();
        await queue.getByText("10.1.1.1 → 10.2.1.2").first().waitFor();
        await fine(queue, "changes");
        await shoot(queue, "changes", { phone: true });

        await queue.getByRole("link", { name: "after", exact: true }).click();
        await queue.getByText("the office reaches the web").waitFor();
        await queue.getByText("rule 59 of chain FORWARD").waitFor();
        // A comment of a rule is text, whatever it looks like.
        assert.equal(await queue.locator("#result b").count(), 0);
        await fine(queue, "a check");
        await shoot(queue, "check", { phone: true });
        await queue.getByLabel("Find").fill("logs in");
        await queue.getByText("1 to 1 of 1").waitFor();
        assert.equal(await queue.getByText("the office reaches the web").count(), 0);

        await queue.getByRole("link", { name: "All answers" }).click();
        const cell = queue.getByRole("region", { name: "All answers" }).getByRole("row").filter({ hasText: "10.2.1.2" });
        await cell.getByText("NO", { exact: true }).first().waitFor();
        await fine(queue, "all answers");
        await shoot(queue, "answers", { phone: true });

        // The form sends a policy with the text of its files, and says what is wrong with it at its field.
        await queue.goto(url);
        await queue.getByRole("button", { name: "Submit a job" }).click();
        await queue.getByLabel("Type").selectOption("check");
        assert.equal(await queue.getByLabel("Source address").isVisible(), false);
        await queue.getByLabel("Lab", { exact: true }).fill("fast");
        await queue.getByLabel("Your name").fill("ann");
        const submit = queue.getByRole("button", { name: "Submit", exact: true });
        await submit.click();
        await queue.locator("#f-policy-error").getByText("This is needed.").waitFor();
        const file = (name, text) => ({ name, mimeType: "text/plain", buffer: Buffer.from(text) });
        const whole = file("own.toml", POLICY.replace("version = 1", 'version = 1\ninclude = ["base.toml"]'));
        assert.deepEqual(problems, []);
        await queue.getByLabel("Policy", { exact: false }).first().setInputFiles(whole);
        await submit.click();
        await queue.locator("#f-policy-error").getByText("base.toml").waitFor();
        await accessible(queue, "submit dialog of a check");
        await shoot(queue, "submit-check", { phone: true });
        await queue.getByLabel("Files that the policy includes").setInputFiles(file("base.toml", "version = 1\n"));
        await submit.click();
        await queue.getByRole("row").filter({ hasText: "own.toml" }).first().waitFor();
        // The browser itself logs the refusal.
        assert.equal(problems.length, 1);
        assert.match(problems.pop(), /400/);

        // A matrix: several addresses in the fields of one, and its answers are its result.
        await queue.getByRole("button", { name: "Submit a job" }).click();
        await queue.getByLabel("Type").selectOption("matrix");
        await queue.getByLabel("Source address").fill("10.1.1.1-10.1.1.4,10.1.2.0/28");
        await queue.getByLabel("The lab's end networks").check();
        await submit.click();
        await queue.locator("#f-ports-error").getByText("This is needed.").waitFor();
        await queue.getByLabel("Services, such as").fill("22,443");
        await accessible(queue, "submit dialog of a matrix");
        await shoot(queue, "submit-matrix", { phone: true });
        await queue.getByLabel("Source address").fill("10.1.1.1");
        await queue.getByLabel("Destination address").fill("10.2.1.2");
        await submit.click();
        const asked = queue.getByRole("row").filter({ hasText: "10.1.1.1 → 10.2.1.2" });
        await asked.getByText("2 NO").waitFor();
        await asked.getByRole("link").click();
        await queue.getByRole("region", { name: "All answers" }).getByText("10.2.1.2").waitFor();
        await queue.getByText("rule 59 of chain FORWARD").waitFor();
        await fine(queue, "a matrix");
        await shoot(queue, "matrix", { phone: true });
        await queue.getByRole("link", { name: "Policies" }).click();
        await queue.getByRole("heading", { name: "10.1.1.1 10.2.1.2 22,443 in fast" }).waitFor();

        // A diff says at its field what is wrong with the other lab.
        await queue.goto(url);
        await queue.getByRole("button", { name: "Submit a job" }).click();
        await queue.getByLabel("Type").selectOption("diff");
        await queue.getByLabel("Lab", { exact: true }).fill("fast");
        await queue.getByLabel("Lab before").fill("fast");
        await queue.getByLabel("Source address").fill("10.1.1.1");
        await queue.getByLabel("Destination address").fill("10.2.1.2");
        await queue.getByLabel("Services, such as").fill("22");
        await submit.click();
        await queue.locator("#f-before-error").getByText("with another one").waitFor();
        await accessible(queue, "submit dialog of a diff");
        assert.equal(problems.length, 1);
        assert.match(problems[0], /400/);
    } finally {
        await context.close();
        await own.end();
    }
});
