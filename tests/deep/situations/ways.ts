/**
 * Tunnels to an origin, for situations that are the same in several directions and versions.
 *
 * @module
 */

import { type Place, port, type Program, type Scene, type Situation } from "./scene.ts";

/** How a connection is forwarded. */
export type Way = "forward" | "reverse" | "SOCKS";

/** A tunnel to an origin, between two processes. */
export interface Tunnel {
  server: Program;
  client: Program;
  /** The port that leads to the origin; that of SOCKS for `SOCKS`. */
  port: number;
  /** The port of the origin. */
  target: number;
  /** Returns a command line of curl for a path of the origin. */
  curl(path: string, ...more: string[]): string[];
}

/** Starts both ends of a tunnel to a port. */
export async function startTunnel(scene: Scene, way: Way, version: number, target: number): Promise<Tunnel> {
  const [control, local] = [port(), port()];
  const allow = way === "reverse" ? ["--allow-listen", `${local}`] : ["--allow", `${target}`];
  const server = scene.sluice("server", ["server", "--listen", `${control}`, ...allow]);
  await server.until(/^listening on /);
  const { forward, reverse, SOCKS } = {
    forward: ["--forward", `${local}=${target}`],
    reverse: ["--reverse", `${local}=${target}`],
    SOCKS: ["--socks", `${local}`],
  };
  const wanted = { forward, reverse, SOCKS }[way]!;
  const client = scene.sluice("client", ["client", "--connect", `${control}`, "--smux", `${version}`, ...wanted]);
  await client.until(/^listening on /);
  const curl = (path: string, ...more: string[]) => [
    "curl",
    "-sS",
    ...more,
    ...way === "SOCKS" ? ["--socks5", `127.0.0.1:${local}`] : [],
    `http://127.0.0.1:${way === "SOCKS" ? target : local}${path}`,
  ];
  return { server, client, port: local, target, curl };
}

/** Makes a situation for each of the ways, in both versions. */
export function each(
  ways: readonly Way[],
  what: string,
  run: (scene: Scene, way: Way, version: number) => Promise<string>,
): Situation[] {
  return ways.flatMap((way) =>
    [1, 2].map((version) => ({
      name: `${what}: ${way}, smux ${version}`,
      run: (scene: Scene) => run(scene, way, version),
    }))
  );
}

/** Starts an origin. */
export async function startOrigin(scene: Scene, at: number, place?: Place): Promise<Program> {
  const origin = scene.script("origin", "origin.ts", [`${at}`, "origin"], place);
  await origin.until(/ listens on port /);
  return origin;
}
