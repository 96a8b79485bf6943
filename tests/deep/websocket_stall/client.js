/**
 * The client of a session, in any runtime.
 *
 * @module
 */

import { Session } from "@sluice/smux";
import { webSocketConnection } from "@sluice/smux/websocket";
import { NOT_READ, READ, RECORDS, Tally, WRITE, WRITE_MUCH, writeOn } from "./exercise.js";

/** What this end has seen. */
export const tally = new Tally();

// So that no stream is collected while it is not read.
const streams = [];
let session;

/** Opens a stream of a kind, and does its work. */
async function open(kind, work = () => Promise.resolve()) {
  const stream = await session.openStream();
  streams.push(stream);
  await stream.write(Uint8Array.of(kind));
  work(stream).catch((error) => tally.fail(error));
}

const receiveRecords = () => open(RECORDS, (stream) => tally.receiveRecords(stream));
const exchangeRecords = () =>
  open(RECORDS, (stream) => Promise.all([tally.sendRecords(stream), tally.receiveRecords(stream)]));

/** The stream of each job that goes on. In version 1 none does beside one that is not read. */
const GOING_ON = {
  client: () => session.version === 2 && open(WRITE, (stream) => tally.read(stream)),
  server: () => session.version === 2 && open(READ, writeOn),
  stopped: exchangeRecords,
  suspended: receiveRecords,
  patient: exchangeRecords,
};

/** The stream that is not read, by an end or by a process that is stopped next. */
const NOT_GOING_ON = {
  client: () => open(WRITE_MUCH),
  server: () => open(NOT_READ, (stream) => tally.writeMuch(stream)),
  stopped: () => open(WRITE_MUCH, (stream) => tally.read(stream)),
};

/** Starts a job over a WebSocket, with nothing stalled yet. */
export async function start(socket, job, options) {
  tally.watch(socket);
  session = Session.client(webSocketConnection(socket), options);
  tally.awaitEnd(session);
  await GOING_ON[job]();
}

/** Opens the stream that is not read. */
export async function stall(job) {
  await NOT_GOING_ON[job]();
}
