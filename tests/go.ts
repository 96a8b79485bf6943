/**
 * Builds the Go programs that tests and benchmarks talk to, from what Debian packages.
 *
 * @module
 */

import { existsSync } from "node:fs";

const PATH = "/usr/share/gocode";

/** Whether a package is there: `github.com/xtaci/smux`. */
export function hasGoPackage(name: string): boolean {
  return existsSync(`${PATH}/src/${name}`);
}

/**
 * Builds a program in `folder`, which keeps the cache too, and gives its path; `undefined` without Go.
 *
 * @throws {Error} What the compiler said.
 */
export async function buildGo(folder: string, files: string[]): Promise<string | undefined> {
  const program = `${folder}/peer`;
  try {
    const { success, stderr } = await new Deno.Command("go", {
      args: ["build", "-o", program, ...files],
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
