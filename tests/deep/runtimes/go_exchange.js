/**
 * Exchanges streams with Go's smux, whose messages `tests/interop/peer.go` describes. Uses only web APIs.
 *
 * @module
 */

const HEADER_LENGTH = 9;
const [ECHO, QUIT] = [..."EQ"].map((op) => op.charCodeAt(0));
// As many at once as in the interop tests: Go holds unread bytes of all streams in one buffer of 4 MiB.
const PARALLEL = 64;

const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
const isEqual = (a, b) => a.length === b.length && a.every((byte, at) => byte === b[at]);

/** Reads this number of bytes; returns `null` if the stream ends before. */
async function readExactly(stream, length) {
  const p = new Uint8Array(length);
  for (let at = 0; at < length;) {
    const count = await stream.read(p.subarray(at));
    if (count === null) return null;
    at += count;
  }
  return p;
}

async function send(stream, op, data) {
  const message = new Uint8Array(HEADER_LENGTH + data.length);
  const header = new DataView(message.buffer);
  header.setUint8(0, op);
  header.setBigUint64(1, BigInt(data.length));
  message.set(data, HEADER_LENGTH);
  await stream.write(message);
}

async function exchange(session, n) {
  const stream = await session.openStream();
  const sent = new Uint8Array(Math.round(1.15 ** (n % 100))).map((_, at) => at * (n + 1) + (at >> 8));
  const [received] = await Promise.all([readExactly(stream, sent.length), send(stream, ECHO, sent)]);
  if (received === null || !isEqual(await sha256(received), await sha256(sent))) {
    throw new Error(`Stream ${stream.id} of ${sent.length} bytes came back changed`);
  }
  stream.close();
}

/** Exchanges this number of streams with Go as the server, closes the session, and returns the number as text. */
export async function askGo(session, count) {
  let next = 0;
  const work = async () => {
    while (next < count) await exchange(session, next++);
  };
  await Promise.all(Array.from({ length: PARALLEL }, work));
  const last = await session.openStream();
  await send(last, QUIT, new Uint8Array(0));
  if (await readExactly(last, 1) !== null) throw new Error("Expected the end of the last stream, received a byte");
  last.close();
  await session.close();
  await session.closed;
  return `${count} streams`;
}

/** Echoes the messages of a stream until its end. Ends QUIT when the streams before it have ended. */
async function echo(stream, earlier) {
  for (let header; (header = await readExactly(stream, HEADER_LENGTH)) !== null;) {
    if (header[0] === QUIT) {
      await Promise.all(earlier);
      break;
    }
    const data = await readExactly(stream, Number(new DataView(header.buffer).getBigUint64(1)));
    await stream.write(data);
  }
  stream.close();
}

/** Echoes the streams of Go as the client until it ends the session, and returns their number as text. */
export async function answerGo(session) {
  const answering = [];
  for await (const stream of session) answering.push(echo(stream, answering.slice()));
  await Promise.all(answering);
  await session.closed;
  return `${answering.length - 1} streams`;
}
