// The lab page with a real lab of ten routers: needs root, as making a lab does.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { accessible, browser, open, programs, root, site } from "./site.mjs";

const shots = process.env.TSIM_SCREENSHOTS;
const lab = `t${process.pid}`;

let chrome;
before(async () => { chrome = await browser(); });
after(async () => { await chrome.close(); });

test("ten routers are drawn and listed", async () => {
    const own = await site();
    const tsim = (...args) => execFileSync(join(programs, "tsim"), ["--config", join(own.dir, "tsim.toml"), ...args], { stdio: ["ignore", "pipe", "ignore"] });
    tsim("lab", "up", lab, "--facts", join(root, "netns-fixtures/corp10"));
    try {
        const problems = [];
        const context = await chrome.newContext({ viewport: { width: 1400, height: 1000 }, colorScheme: "light" });
        const page = await open(context, `http://localhost:${own.port}/lab`, problems);
        await page.getByRole("cell", { name: "free" }).first().waitFor();
        assert.equal(await page.locator("#map .router").count(), 10);
        assert.equal(await page.locator("#routers tr").count(), 10);
        await page.getByRole("button", { name: "Show end networks" }).click();
        await accessible(page, "lab, light");
        await page.emulateMedia({ colorScheme: "dark" });
        await accessible(page, "lab, dark");
        if (shots) {
            mkdirSync(shots, { recursive: true });
            await page.screenshot({ path: `${shots}/lab-dark.png` });
            await page.emulateMedia({ colorScheme: "light" });
            await page.getByRole("button", { name: "Show end networks" }).click();
            await page.screenshot({ path: `${shots}/lab-light.png` });
        }
        assert.deepEqual(problems, []);
        await context.close();
    } finally {
        tsim("lab", "down", lab);
        await own.end();
    }
});
