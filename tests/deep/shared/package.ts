/**
 * The package as npm gets it.
 *
 * @module
 */

import { run } from "../../programs.ts";

/** Packs this package, and installs it into a folder together with others of npm. */
export async function installPackage(folder: string, ...others: string[]): Promise<void> {
  const cwd = new URL("../../../", import.meta.url);
  await run(Deno.execPath(), ["pack", "--quiet", "--allow-dirty", "--output", `${folder}/smux.tgz`], { cwd });
  await Deno.writeTextFile(`${folder}/package.json`, JSON.stringify({ private: true, type: "module" }));
  const quietly = ["--no-audit", "--no-fund", "--silent"];
  await run("npm", ["install", ...quietly, "./smux.tgz", ...others], { cwd: folder });
}
