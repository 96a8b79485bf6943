/**
 * A page that opens and closes hashed streams, at a moderate rate, over two sessions: one of each version.
 *
 * @module
 */

import { connectWebSocket } from "@sluice/smux/websocket";

const LEAST_BYTES = 1024;
const MOST_BYTES = 256 * 1024;
const HASH_LENGTH = 32;
// Streams that may be open at once. More are not opened until one has ended.
const MOST_OPEN = 10;

const url = location.href.replace(/^http/, "ws");
const source = new Uint8Array(2 * MOST_BYTES).map((_, at) => at * 31 + (at >> 8) * 7);
const sessions = [];
const underWay = new Set();
let timer;
let opened = 0;
let count = 0;
let bytes = 0;
let failure;

const hashOf = async (data) => new Uint8Array(await crypto.subtle.digest("SHA-256", data)).join();

/** Sends part of the source over a stream of its own, and compares the hash that comes back, and that of the data. */
async function exchange(session) {
  const size = Math.round(LEAST_BYTES * (MOST_BYTES / LEAST_BYTES) ** Math.random());
  const at = Math.floor(Math.random() * MOST_BYTES);
  const sent = source.subarray(at, at + size);
  const stream = await session.openStream();
  await stream.write(sent);
  await stream.closeWrite();
  const received = new Uint8Array(await new Response(stream.readable).arrayBuffer());
  const hash = await hashOf(sent);
  if (received.subarray(0, HASH_LENGTH).join() !== hash || await hashOf(received.subarray(HASH_LENGTH)) !== hash) {
    throw new Error(`Stream ${stream.id} of ${size} bytes came back changed`);
  }
  await stream.closed;
  count++;
  bytes += size;
}

function open() {
  if (underWay.size >= MOST_OPEN) return;
  const one = exchange(sessions[opened++ % sessions.length])
    .catch((error) => failure ??= error)
    .finally(() => underWay.delete(one));
  underWay.add(one);
}

/** Opens this many streams a second, until paused. */
globalThis.work = async (rate) => {
  for (const version of sessions.length > 0 ? [] : [1, 2]) sessions.push(await connectWebSocket(url, { version }));
  timer = setInterval(open, 1000 / rate);
};

/** Waits for the streams under way, and returns what was done so far. */
globalThis.pause = async () => {
  clearInterval(timer);
  await Promise.all(underWay);
  if (failure !== undefined) throw failure;
  const unread = sessions.map((session) => session.stats().bytesUnread + session.stats().streams);
  if (unread.some((one) => one > 0)) throw new Error(`Idle sessions hold streams or unread bytes: ${unread}`);
  return { count, bytes };
};
