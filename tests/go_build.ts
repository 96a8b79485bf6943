/**
 * Builds the Go programs that tests and benchmarks talk to, from what Debian packages.
 *
 * @module
 */

import { copyFileSync, existsSync } from "node:fs";
import { basename } from "node:path";

const PATH = "/usr/share/gocode";

/** A file of what every program does that is measured. */
export const MEASURED = `${import.meta.dirname}/measured.go`;

/** Whether a package is there: `github.com/xtaci/smux`. */
export function hasGoPackage(name: string): boolean {
  return existsSync(`${PATH}/src/${name}`);
}

/**
 * Builds a program in `folder`, which keeps the cache too, and gives its path; `undefined` without Go. The files may come
 * from anywhere, where Go wants all of a program in one place: they are copied.
 *
 * @throws {Error} What the compiler said.
 */
export async function buildGo(folder: string, files: string[]): Promise<string | undefined> {
  const program = `${folder}/peer`;
  for (const file of files) copyFileSync(file, `${folder}/${basename(file)}`);
  try {
    const { success, stderr } = await new Deno.Command("go", {
      args: ["build", "-o", program, ...files.map((file) => basename(file))],
      cwd: folder,
      env: { GO111MODULE: "off", GOFLAGS: "", GOPATH: PATH, GOCACHE: `${folder}/cache` },
      stdin: "null",
      stdout: "null",
      stderr: "piped",
    }).output();
    if (!success) throw new Error(`go build: ${new TextDecoder().decode(stderr)}`);
    return program;
  } catch (error) {
    if (error instanceof Deno.errors.NotFound) return undefined;
    throw error;
  }
}
