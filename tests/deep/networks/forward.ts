/**
 * A small forwarding program over resumable connections, for comparison with the command of the tunnel:
 * `forward.ts server LISTEN` and `forward.ts client SERVER PORT...`.
 *
 * The client listens at a free port for each port of the server, and prints it. A stream begins with the port.
 *
 * @module
 */

import { join, serve, Session } from "../../../mod.ts";
import { resumable, resumableListener } from "../../../resume.ts";
import { readExactly, writeAll } from "../../support.ts";

const HOSTNAME = "127.0.0.1";

function parse(address: string): { hostname: string; port: number } {
  const [hostname, port] = address.split(":");
  return { hostname: hostname!, port: Number(port) };
}

function runServer(address: string): void {
  serve(resumableListener(Deno.listen(parse(address))), async (stream) => {
    const port = new DataView((await readExactly(stream, 2)).buffer).getUint16(0);
    await join(stream, await Deno.connect({ hostname: HOSTNAME, port }));
  });
  console.log(`listening on ${address}`);
}

async function forward(session: Session, socket: Deno.TcpConn, port: number): Promise<void> {
  const stream = await session.openStream();
  await writeAll(stream, Uint8Array.of(port >> 8, port));
  await join(stream, socket);
}

function runClient(address: string, ports: number[]): void {
  const onChange = (state: string, reason: unknown) => console.error(`${state}${reason ? `: ${reason}` : ""}`);
  const session = Session.client(resumable(() => Deno.connect(parse(address)), { onChange }));
  for (const port of ports) {
    const listener = Deno.listen({ hostname: HOSTNAME, port: 0 });
    console.log(`listening on ${HOSTNAME}:${listener.addr.port}`);
    (async () => {
      for await (const socket of listener) forward(session, socket, port).catch((error) => console.error(`${error}`));
    })();
  }
}

const [role, address, ...ports] = Deno.args;
if ((role !== "client" && role !== "server") || address === undefined) {
  throw new TypeError(`expected forward.ts client|server ADDRESS [PORT...], received ${Deno.args}`);
}
if (role === "server") runServer(address);
else runClient(address, ports.map(Number));
