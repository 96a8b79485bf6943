/**
 * Exchanges streams whose data the peer returns with its hash. Uses only web APIs, so that every runtime runs it.
 *
 * @module
 */

const HASH_LENGTH = 32;
// Larger: in version 1 a page holds more than `maxReceiveBuffer` allows, because a WebSocket has no backpressure.
const PARALLEL = 100;

const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
const readAll = async (stream) => new Uint8Array(await new Response(stream.readable).arrayBuffer());
const isEqual = (a, b) => a.length === b.length && a.every((byte, at) => byte === b[at]);

/** Answers a stream, after its end, with the hash of its data and with the data. */
export async function answer(stream) {
  const received = await readAll(stream);
  await stream.write(await sha256(received));
  await stream.write(received);
  await stream.closeWrite();
}

async function exchange(session, n) {
  const stream = await session.openStream();
  const size = Math.round(1.15 ** (n % 100));
  const sent = new Uint8Array(size).map((_, at) => at * (n + 1) + (at >> 8));
  if (n % 2 === 0) {
    await new Blob([sent]).stream().pipeTo(stream.writable);
  } else {
    await stream.write(sent);
    await stream.closeWrite();
  }
  const received = await readAll(stream);
  const [hash, back] = [received.slice(0, HASH_LENGTH), received.slice(HASH_LENGTH)];
  if (!isEqual(back, sent) || !isEqual(hash, await sha256(sent))) {
    throw new Error(`Stream ${stream.id} of ${size} bytes came back changed`);
  }
  await stream.closed;
}

/** Exchanges this number of streams, closes the session, and returns the number as text. */
export async function exchangeAll(session, count) {
  let next = 0;
  const work = async () => {
    while (next < count) await exchange(session, next++);
  };
  try {
    await Promise.all(Array.from({ length: PARALLEL }, work));
  } catch (error) {
    session.abort(error);
    // If the session ended first, with an error, that error is the cause.
    await session.closed;
    throw error;
  }
  await session.close();
  await session.closed;
  return `${count} streams`;
}
