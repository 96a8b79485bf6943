/**
 * Exchanges streams whose data the peer returns with its hash. Uses only web APIs, so that every runtime runs it.
 *
 * @module
 */

const SIZES = Array.from({ length: 100 }, (_, n) => Math.round(1.15 ** n));
const HASH_LENGTH = 32;

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

async function exchange(session, size, n) {
  const stream = await session.openStream();
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

/** Exchanges all streams over a session, closes it, and returns their number. */
export async function exchangeAll(session) {
  await Promise.all(SIZES.map((size, n) => exchange(session, size, n)));
  await session.close();
  await session.closed;
  return `${SIZES.length} streams`;
}
