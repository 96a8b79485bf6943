/**
 * Makes `@std` importable: from JSR if it is reachable, otherwise from the stand-ins in `tools/std`.
 *
 * Every task depends on this one. It links `.std` (a link of deno.json) to the stand-ins or removes it, and prints
 * which `@std` is in use. Run it with `--no-config`: with deno.json the imports would resolve to the stand-ins.
 *
 * @module
 */
import { cpSync, existsSync, lstatSync, rmSync, symlinkSync } from "node:fs";
import { fileURLToPath } from "node:url";
import config from "../deno.json" with { type: "json" };

const packages = Object.values(config.imports).filter((specifier) => specifier.startsWith("jsr:@std/"));
const link = fileURLToPath(new URL("../.std", import.meta.url));
const standIns = fileURLToPath(new URL("./std", import.meta.url));

/** Whether JSR answers, within 3 s, or within 500 ms when it did not answer the last time. */
async function reachable(): Promise<boolean> {
  const answer = import(packages[0] ?? "").then(() => true, () => false);
  const timeout = new Promise<boolean>((resolve) => setTimeout(resolve, existsSync(link) ? 500 : 3000, false));
  return await Promise.race([answer, timeout]);
}

/** Fetches all packages from JSR; returns their versions, such as `assert 1.0.19`, or an empty array on failure. */
async function fetchAll(): Promise<string[]> {
  const source = packages.map((specifier) => `import "${specifier}";`).join("");
  const args = ["info", "--json", "--no-config", `data:text/javascript,${encodeURIComponent(source)}`];
  const { stdout } = await new Deno.Command(Deno.execPath(), { args, stderr: "null" }).output();
  const graph: { modules: { error?: string }[]; redirects: Record<string, string> } = JSON.parse(
    new TextDecoder().decode(stdout),
  );
  if (graph.modules.some((module) => module.error)) return [];
  return packages.map((specifier) => /@std\/(.+?)\/(.+?)\//.exec(graph.redirects[specifier] ?? ""))
    .map((found) => `${found?.[1]} ${found?.[2]}`);
}

function useStandIns() {
  try {
    symlinkSync("tools/std", link, "dir");
  } catch { // the link exists, or the system refuses symbolic links: then make a copy, anew each time
    if (!lstatSync(link, { throwIfNoEntry: false })?.isSymbolicLink()) cpSync(standIns, link, { recursive: true });
  }
}

const chosen = await reachable() ? await fetchAll() : [];
if (chosen.length > 0) {
  rmSync(link, { recursive: true, force: true });
  console.log(`@std: jsr ${chosen.join(", ")}`);
} else {
  useStandIns();
  console.log("@std: local stand-ins (JSR not reachable)");
}
Deno.exit(); // a pending import would keep this process alive
