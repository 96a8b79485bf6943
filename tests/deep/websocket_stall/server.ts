/**
 * The server of one session, in a process of its own: `server.ts OPTIONS` prints its port. A request for `/tally` is
 * answered with what this end has seen, any other one with a page.
 *
 * @module
 */

import type { Session, Stream } from "../../../mod.ts";
import { upgradeWebSocket } from "../../../websocket.ts";
import { servePage } from "../../browsers.ts";
import { endWithInput } from "../../measured.ts";
import { LOOPBACK } from "../../support.ts";
// @ts-types="./exercise.d.ts"
import { NOT_READ, READ, RECORDS, Tally, WRITE, WRITE_MUCH, writeOn } from "./exercise.js";

endWithInput();
const tally = new Tally();

const jobs: Record<number, (stream: Stream) => Promise<unknown>> = {
  [NOT_READ]: (stream) => stream.closed,
  [READ]: (stream) => tally.read(stream),
  [WRITE_MUCH]: (stream) => tally.writeMuch(stream),
  [WRITE]: writeOn,
  [RECORDS]: (stream) => Promise.all([tally.sendRecords(stream), tally.receiveRecords(stream)]),
};

async function answer(stream: Stream): Promise<void> {
  const kind = new Uint8Array(1);
  await stream.read(kind);
  await jobs[kind[0]!]!(stream).catch((error) => tally.fail(error));
}

const options = {
  ...JSON.parse(Deno.args[0]!),
  onSession: (session: Session) => void tally.awaitEnd(session),
  onError() {},
};

// The socket is not known to a user of `upgradeWebSocket`.
const { upgradeWebSocket: upgrade } = Deno;
Deno.upgradeWebSocket = (...args) => {
  const upgraded = upgrade(...args);
  tally.watch(upgraded.socket);
  return upgraded;
};

Deno.serve({ ...LOOPBACK, onListen: ({ port }) => console.log(port) }, async (request) => {
  if (request.url.endsWith("/tally")) return Response.json(tally);
  if (request.headers.has("upgrade")) return upgradeWebSocket(request, answer, options);
  return await servePage(request, "tests/deep/websocket_stall/page.js");
});
