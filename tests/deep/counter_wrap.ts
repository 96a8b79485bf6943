/**
 * Sends more than 4 GiB each way on one stream of version 2, between two processes over TCP, so that its 32-bit
 * counters wrap.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { Session, type Stream } from "../../mod.ts";
import { readAll, readExactly, readSome } from "../support.ts";
import { oneOf, parse, positive } from "./shared/options.ts";
import { program } from "./shared/program.ts";

/** One line for the list of long tests. */
export const description =
  "More than 4 GiB each way on one v2 stream, whose counters wrap: [--gib 4.5] [--way up|down]";

const CHUNK = 256 * 1024;
const HASH = 64;
// Timeout without progress, in milliseconds: a wrong counter makes the stream wait forever.
const PATIENCE = 30_000;

/** The bytes sent or received in a transfer, and their SHA-256. */
interface Report {
  bytes: number;
  hash: string;
}

/** Runs the transfers; rejects if a byte is missing or wrong. */
export async function run(args: string[]): Promise<void> {
  if (args[0] === "--answer") return await answer();
  const { gib, way: ways } = parse(args, { gib: positive(4.5), way: oneOf(["up", "down"]) });
  const total = Math.ceil(gib * 2 ** 30);

  using listener = Deno.listen({ hostname: "127.0.0.1", port: 0 });
  const child = new Deno.Command(Deno.execPath(), {
    args: program("counter_wrap", "--answer", `${listener.addr.port}`),
    stdin: "null",
  }).spawn();
  const session = Session.client(await listener.accept(), { version: 2 });
  for (const way of ways) {
    const progress = new Progress(way, total, () => session.abort(new Error(`No progress for ${PATIENCE} ms`)));
    await transfer(session, way, total, progress);
  }
  await session.close();
  await session.closed;
  const { code } = await child.status;
  if (code !== 0) throw new Error(`The other process ended with code ${code}`);
}

async function transfer(session: Session, way: "up" | "down", total: number, progress: Progress): Promise<void> {
  const started = performance.now();
  const stream = await session.openStream();
  const request = new Float64Array([way === "up" ? 1 : 0, total]);
  await stream.write(new Uint8Array(request.buffer));
  let sent: Report;
  let received: Report;
  if (way === "up") {
    sent = await send(stream, total, progress);
    await stream.closeWrite();
    received = JSON.parse(new TextDecoder().decode(await readAll(stream)));
  } else {
    await stream.closeWrite();
    received = await receive(stream, total, progress);
    sent = { bytes: total, hash: new TextDecoder().decode(await readSome(stream, HASH)) };
  }
  progress.end();
  await stream.closed;
  const seconds = (performance.now() - started) / 1000;
  const same = sent.hash === received.hash && sent.bytes === received.bytes && received.bytes === total;
  const wraps = Math.floor(received.bytes / 2 ** 32);
  console.log(
    `counter_wrap ${way}: ${received.bytes} bytes on stream ${stream.id} of version ${session.version}, ` +
      `${wraps} wrap${wraps === 1 ? "" : "s"}, ${seconds.toFixed(1)} s, ` +
      `${(received.bytes / seconds / 1e6).toFixed(0)} MB/s, SHA-256 ${same ? "equal" : "DIFFERENT"} (${received.hash})`,
  );
  if (!same) throw new Error(`Sent ${JSON.stringify(sent)}, received ${JSON.stringify(received)}`);
}

/** The other process: sends or receives on each stream, as the first bytes of the stream request. */
async function answer(): Promise<void> {
  const port = Number(Deno.args.at(-1));
  const session = Session.server(await Deno.connect({ hostname: "127.0.0.1", port }), { version: 2 });
  for await (const stream of session) {
    const [up, total] = new Float64Array((await readExactly(stream, 16)).buffer);
    if (up === 1) {
      const report = await receive(stream, Infinity);
      await stream.write(new TextEncoder().encode(JSON.stringify(report)));
    } else {
      const { hash } = await send(stream, total!);
      await stream.write(new TextEncoder().encode(hash));
    }
    await stream.closeWrite();
  }
  await session.closed;
}

/** Sends `total` bytes, in which each 32-bit word is a hash of its position. */
async function send(stream: Stream, total: number, progress?: Progress): Promise<Report> {
  const hash = createHash("sha256");
  const words = new Uint32Array(CHUNK / 4);
  const chunk = new Uint8Array(words.buffer);
  for (let at = 0; at < total; at += CHUNK) {
    for (let n = 0; n < words.length; n++) words[n] = Math.imul(at / 4 + n, 0x9e3779b1);
    const part = total - at < CHUNK ? chunk.subarray(0, total - at) : chunk;
    hash.update(part);
    await stream.write(part);
    progress?.show(at + part.length);
  }
  return { bytes: total, hash: hash.digest("hex") };
}

/** Receives to the end of the stream, or at most `total` bytes. */
async function receive(stream: Stream, total: number, progress?: Progress): Promise<Report> {
  const hash = createHash("sha256");
  const p = new Uint8Array(CHUNK);
  let bytes = 0;
  while (bytes < total) {
    const count = await stream.read(total - bytes < CHUNK ? p.subarray(0, total - bytes) : p);
    if (count === null) break;
    hash.update(p.subarray(0, count));
    bytes += count;
    progress?.show(bytes);
  }
  return { bytes, hash: hash.digest("hex") };
}

/** Shows progress: one line in place on a terminal, a line for each tenth elsewhere. */
class Progress {
  readonly #way: string;
  readonly #total: number;
  readonly #started = performance.now();
  readonly #watchdog: ReturnType<typeof setInterval>;
  #movedAt = this.#started;
  #shownAt = 0;
  #tenths = 0;

  /** Calls `stalled` after {@linkcode PATIENCE} milliseconds without progress. */
  constructor(way: string, total: number, stalled: () => void) {
    this.#way = way;
    this.#total = total;
    this.#watchdog = setInterval(() => {
      if (performance.now() - this.#movedAt > PATIENCE) stalled();
    }, 1000);
  }

  show(bytes: number): void {
    const now = this.#movedAt = performance.now();
    const isTerminal = Deno.stdout.isTerminal();
    if (isTerminal ? now - this.#shownAt < 100 : bytes / this.#total * 10 < this.#tenths + 1) return;
    this.#shownAt = now;
    this.#tenths++;
    const gib = (count: number) => (count / 2 ** 30).toFixed(2);
    const rate = bytes / (now - this.#started) / 1000;
    const line = `${this.#way}: ${gib(bytes)} of ${gib(this.#total)} GiB, ${rate.toFixed(0)} MB/s`;
    Deno.stdout.writeSync(new TextEncoder().encode(isTerminal ? `\r${line}\x1b[K` : `${line}\n`));
  }

  end(): void {
    clearInterval(this.#watchdog);
    if (Deno.stdout.isTerminal()) Deno.stdout.writeSync(new TextEncoder().encode("\r\x1b[K"));
  }
}
