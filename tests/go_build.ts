/**
 * Builds the Go peers of tests and benchmarks from Debian's Go packages.
 *
 * @module
 */

import { copyFileSync, existsSync } from "node:fs";
import { basename } from "node:path";

const PATH = "/usr/share/gocode";

/** The Go file that all measured programs include. */
export const MEASURED = `${import.meta.dirname}/measured.go`;

/** Whether a Go package is installed, such as `github.com/xtaci/smux`. */
export function hasGoPackage(name: string): boolean {
  return existsSync(`${PATH}/src/${name}`);
}

/**
 * Builds a program in `folder`, and returns its path; `undefined` without Go. The files are copied into the folder,
 * because Go requires all files of a program in one place. The build cache is there, too.
 *
 * @throws {Error} With the compiler's output.
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
