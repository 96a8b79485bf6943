/**
 * The machine of a client vanishes: its network drops all packets, and nothing is closed. Another machine of the same
 * user requests the same reverse port.
 *
 * A switch (a bridge in the namespace of the server) connects the three machines.
 *
 * @module
 */

import { setTimeout } from "node:timers/promises";
import { hashSecret } from "../../../tunnel.ts";
import { makeFolder, Process, run } from "../../programs.ts";
import { check, type Scene, seconds, type Situation } from "./scene.ts";

const SECRET = "open-sesame";
// Addresses for documentation: no real host has them.
const ADDRESSES = { server: "192.0.2.1", old: "192.0.2.2", new: "192.0.2.3" };
const CONTROL = 9000;
const PORT = 8000;
const TARGET = 3000;
// Milliseconds from the connection of the new client: the server waits 4 s for the old one.
const LIMIT = 8000;

/** Runs a command to its end. */
async function execute(scene: Scene, [command, ...before]: string[], ...args: string[]): Promise<void> {
  scene.note(`server# ${args.join(" ")}`);
  await run(command!, [...before, ...args]);
}

/** Creates the namespaces of a server and of two clients; returns the command prefix of each. */
async function connect(scene: Scene) {
  const namespace = async () => {
    // The shell runs until its input ends.
    return await scene.stack.use(new Process(["unshare", "--net", "sh", "-c", "echo $$; exec cat"])).line();
  };
  const ids = { server: await namespace(), old: await namespace(), new: await namespace() };
  const enter = (id: string) => ["nsenter", "--net", "--target", id];
  const at = { server: enter(ids.server), old: enter(ids.old), new: enter(ids.new) };
  const ip = async ([command, ...before]: string[], ...args: string[]) =>
    void await run(command!, [...before, "ip", ...args]);
  await ip(at.server, "link", "add", "switch", "type", "bridge");
  await ip(at.server, "address", "add", `${ADDRESSES.server}/24`, "dev", "switch");
  for (const name of ["lo", "switch"]) await ip(at.server, "link", "set", name, "up");
  for (const name of ["old", "new"] as const) {
    await ip(at.server, "link", "add", name, "type", "veth", "peer", "name", "end", "netns", ids[name]);
    await ip(at.server, "link", "set", name, "master", "switch", "up");
    await ip(at[name], "address", "add", `${ADDRESSES[name]}/24`, "dev", "end");
    for (const device of ["lo", "end"]) await ip(at[name], "link", "set", device, "up");
  }
  return at;
}

async function cut(scene: Scene, pause: number): Promise<string> {
  const at = await connect(scene);
  const { path: cwd } = scene.stack.use(await makeFolder("power"));
  const user = { name: "alice", secret: await hashSecret(SECRET), allowListen: [`127.0.0.1:${PORT}`] };
  await Deno.writeTextFile(`${cwd}/users.json`, JSON.stringify([user]));
  const connectTo = `${ADDRESSES.server}:${CONTROL}`;
  const listen = ["server", "--listen", connectTo, "--users", "users.json", "--insecure"];
  const server = scene.sluice("server", listen, { at: at.server, machine: "server", cwd });
  await server.until(/^listening on /);
  const start = async (name: "old" | "new") => {
    const origin = scene.script(`${name} origin`, "origin.ts", [`${TARGET}`, name], { at: at[name], machine: name });
    await origin.until(/ listens on /);
    const args = ["client", "--connect", connectTo, "--user", "alice", "--reverse", `${PORT}=${TARGET}`, "--insecure"];
    const since = performance.now();
    const client = scene.sluice(`${name} client`, args, {
      at: at[name],
      machine: name,
      env: { SLUICE_SECRET: SECRET },
    });
    await client.until(/^listening on /, { limit: 2 * LIMIT });
    return since;
  };
  const ask = async (name: string) => {
    const curl = scene.start("curl", ["curl", "-sS", `http://127.0.0.1:${PORT}/hello`], {
      at: at.server,
      machine: "server",
    });
    const { at: answered, match: [, by] } = await curl.until(/^hello from (.*)/, { limit: LIMIT });
    check(by === name, `the port is answered by the ${by} client, not by the ${name} one`);
    return answered;
  };
  await start("old");
  await ask("old");
  await execute(scene, at.server, "ip", "link", "set", "old", "nomaster");
  await setTimeout(pause);
  const since = await start("new");
  const answered = await ask("new");
  const { at: connected } = await server.until(new RegExp(`^connection from ${ADDRESSES.new}:`));
  const [took, all] = [answered - connected, answered - since];
  check(took < LIMIT, `the new client had the port ${seconds(took)} after its connection`);
  return `the new client had the port ${seconds(took)} after its connection, ${seconds(all)} after its start`;
}

/** The situations of this module. */
export const powerCut: Situation[] = [1, 10, 29].map((pause) => ({
  name: `the machine of a client vanishes; another one requests its reverse port after ${pause} s`,
  run: (scene) => cut(scene, pause * 1000),
}));
