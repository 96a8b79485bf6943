/**
 * The worker of a neighbour: sends data without end to be echoed, and reports the number of echoed bytes on request.
 *
 * @module
 */

import { Session } from "../../mod.ts";
import type { Way } from "./neighbour.ts";

const PIECE = 64 * 1024;
const scope = self as unknown as Worker;
let echoed = 0;
let failure: string | undefined;

scope.onmessage = ({ data }: MessageEvent<Way | null>) => {
  if (data === null) return scope.postMessage(failure ?? echoed);
  carry(data).catch((error) => failure = `The neighbour failed: ${error}`);
};

async function carry({ port, version, role }: Way): Promise<void> {
  const connection = await Deno.connect({ hostname: "127.0.0.1", port });
  const session = role === "server" ? Session.client(connection, { version }) : Session.server(connection);
  const stream = await session.openStream();
  const read = async () => {
    const p = new Uint8Array(PIECE);
    for (let count; (count = await stream.read(p)) !== null;) echoed += count;
  };
  const write = async () => {
    for (const p = new Uint8Array(PIECE);;) await stream.write(p);
  };
  await Promise.all([read(), write()]);
}
