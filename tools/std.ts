/**
 * Makes `@std` importable: from JSR where it can be reached, else from the stand-ins in `tools/std`.
 *
 * Every task depends on this one. It points `.std` (which deno.json links) at the stand-ins, or removes it, and says in
 * one line which `@std` is in use. Run it with `--no-config`, or deno.json would answer with the links themselves.
 *
 * @module
 */
import { cpSync, existsSync, lstatSync, rmSync, symlinkSync } from "node:fs";
import { fileURLToPath } from "node:url";
import config from "../deno.json" with { type: "json" };

const packages = Object.values(config.imports).filter((specifier) => specifier.startsWith("jsr:@std/"));
const link = fileURLToPath(new URL("../.std", import.meta.url));
const standIns = fileURLToPath(new URL("./std", import.meta.url));

/** Whether JSR answers: within 3 s, or half a second when it did not answer the last time. */
async function reachable(): Promise<boolean> {
  const answer = import(packages[0] ?? "").then(() => true, () => false);
  const patience = new Promise<boolean>((resolve) => setTimeout(resolve, existsSync(link) ? 500 : 3000, false));
  return await Promise.race([answer, patience]);
}

/** What JSR chose, as `assert 1.0.19`; it also fetches what is not cached yet, and is empty when that fails. */
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
  } catch { // it is there already, or this system refuses symbolic links: then a copy, made anew each time
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
Deno.exit(); // an import that still waits for the network would keep this process alive
