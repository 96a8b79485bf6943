/**
 * The sanitizers are off by default: these tests prove that deno.json switches them on.
 *
 * @module
 */
import { assertEquals, assertStringIncludes } from "@std/assert";

/** Runs the leaking tests with the configuration of the repository and no further flag. */
async function run(...args: string[]): Promise<{ success: boolean; output: string }> {
  const child = new Deno.Command(Deno.execPath(), {
    args: ["test", "-A", "tests/fixtures/leaks.ts", "--", ...args],
    cwd: new URL("..", import.meta.url),
    env: { NO_COLOR: "1" },
  });
  const { success, stdout, stderr } = await child.output();
  return { success, output: [stdout, stderr].map((bytes) => new TextDecoder().decode(bytes)).join("") };
}

Deno.test("sanitizers: tests that leak an operation, a listener or a timer fail, and the output names the leaks", async () => {
  const { success, output } = await run("leak");
  assertEquals(success, false, output);
  assertStringIncludes(output, "0 passed | 3 failed");
  assertStringIncludes(
    output,
    "An async operation to accept a TCP stream was started in this test, but never completed",
  );
  assertStringIncludes(output, "A TCP listener was opened during the test, but not closed");
  assertStringIncludes(output, "A timer was started in this test, but never completed");
});

Deno.test("sanitizers: the same tests pass when they close what they opened", async () => {
  const { success, output } = await run();
  assertEquals(success, true, output);
  assertStringIncludes(output, "3 passed | 0 failed");
});
