/**
 * A PostgreSQL server with an empty database, for tests.
 *
 * @module
 */

import { existsSync, readdirSync } from "node:fs";
import { findProgram, makeFolder, run, watch } from "./programs.ts";
import { freePort } from "./support.ts";

const VERSIONS = "/usr/lib/postgresql";

/** The folder of the programs of PostgreSQL, which Debian does not add to the path; `undefined` without them. */
function findPrograms(): string | undefined {
  const versions = existsSync(VERSIONS) ? readdirSync(VERSIONS).map((name) => `${VERSIONS}/${name}/bin`) : [];
  const inPath = findProgram("initdb")?.replace(/\/initdb$/, "");
  return [...versions.sort().reverse(), ...inPath === undefined ? [] : [inPath]]
    .find((folder) => existsSync(`${folder}/initdb`) && existsSync(`${folder}/postgres`));
}

const programs = findPrograms();

/** Whether PostgreSQL is installed. */
export const hasPostgres = programs !== undefined;

/**
 * Starts PostgreSQL on a free port of 127.0.0.1; its user `postgres` needs no password.
 *
 * @param prefix Command that runs the server, in another network namespace for example.
 */
export async function startPostgres(prefix: string[] = []) {
  await using resources = new AsyncDisposableStack();
  const { path: folder } = resources.use(await makeFolder("postgres"));
  // PostgreSQL refuses to run as root.
  const asUser = Deno.uid() === 0 ? ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups"] : [];
  if (asUser.length > 0) {
    const id = async (option: string) => Number(new TextDecoder().decode(await run("id", [option, "postgres"])));
    await Deno.chown(folder, await id("-u"), await id("-g"));
  }
  const data = `${folder}/data`;
  const [program, ...args] = [...asUser, `${programs}/initdb`, "--auth=trust", "--username=postgres", "-N", data];
  await run(program!, args, { cwd: folder });

  const port = freePort();
  const command = [...prefix, ...asUser, `${programs}/postgres`];
  const [server, ...options] = [...command, "-D", data, "-h", "127.0.0.1", "-p", `${port}`];
  const child = new Deno.Command(server!, {
    // Without sync, because the data is removed at the end.
    args: [...options, "-k", folder, "-F"],
    cwd: folder,
    env: { LC_ALL: "C" },
    stdin: "null",
    stdout: "piped",
    stderr: "piped",
  }).spawn();
  const watched = watch(child);
  // SIGQUIT ends the server and all its processes at once; SIGKILL would leave them.
  resources.defer(async () => void await watched.end("SIGQUIT"));
  await watched.until(/ready to accept connections/, "stderr");
  const owned = resources.move();
  return { port, [Symbol.asyncDispose]: () => owned.disposeAsync() };
}
