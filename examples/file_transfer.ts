/**
 * Sends files over one connection, four at a time.
 *
 * In smux an interrupted stream looks like one that ended. So each file follows a header of 1024 bytes, with its
 * length, SHA-256 and name, and counts as sent only when the receiver has confirmed it.
 *
 * ```sh
 * deno run --allow-net --allow-read --allow-write examples/file_transfer.ts receive 9000 FOLDER
 * deno run --allow-net --allow-read examples/file_transfer.ts send localhost:9000 FILE…
 * bun examples/file_transfer.ts receive 9000 FOLDER # in Bun
 * npx tsx examples/file_transfer.ts send localhost:9000 FILE… # in Node
 * ```
 *
 * @module
 */
import { createHash, randomUUID } from "node:crypto";
import { createReadStream } from "node:fs";
import { rename, stat, writeFile } from "node:fs/promises";
import { connect } from "node:net";
import process from "node:process";
import { serve, Session, type Stream } from "@sluice/smux";
import { listen } from "./node/listen.ts";

const HEADER_LENGTH = 1024;
const CONFIRMATION = "received";
const CONCURRENT_FILES = 4;

/** Returns the length and the SHA-256 of a file, as the header has them. */
async function lengthAndHash(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of createReadStream(path)) hash.update(chunk);
  return `${(await stat(path)).size} ${hash.digest("hex")}`;
}

/** Receives one file into a folder, and confirms it. */
async function receiveFile(stream: Stream, folder: string): Promise<void> {
  const header = new Uint8Array(HEADER_LENGTH);
  for (let filled = 0; filled < header.length;) {
    const count = await stream.read(header.subarray(filled));
    if (count === null) throw new Error(`the stream ended after ${filled} bytes of its header`);
    filled += count;
  }
  const fields = new TextDecoder().decode(header).trim().split(" ");
  const [length, hash, name = ""] = fields.map(decodeURIComponent);
  if (/^\.{0,2}$|[/\\:\p{Cc}]/u.test(name)) throw new Error(`invalid file name: ${JSON.stringify(name)}`);

  // Only a complete file gets its name.
  const part = `${folder}/${randomUUID()}.part`;
  await writeFile(part, stream.readable);
  if (await lengthAndHash(part) !== `${length} ${hash}`) {
    throw new Error(`${name} is incomplete or corrupt: see ${part}`);
  }
  await rename(part, `${folder}/${name}`);

  await stream.write(new TextEncoder().encode(CONFIRMATION));
  console.log(`received ${name}: ${length} bytes, SHA-256 ${hash}`);
}

/** Sends one file, and waits until it is confirmed. */
async function sendFile(session: Session, path: string, onProgress: (percent: number) => void): Promise<void> {
  const description = await lengthAndHash(path);
  const length = parseInt(description);
  const name = path.split(/[/\\]/).pop()!;
  const header = `${description} ${encodeURIComponent(name)}`.padEnd(HEADER_LENGTH);

  const stream = await session.openStream();
  const answer = new Response(stream.readable).text().catch(() => "").finally(() => stream.close());
  await stream.write(new TextEncoder().encode(header));

  let sent = 0;
  for await (const chunk of createReadStream(path)) {
    // A receiver that refuses the file answers before its end, and then the stream is closed.
    if (await stream.write(chunk).catch(() => 0) === 0) break;
    sent += chunk.length;
    onProgress(Math.floor(100 * sent / length));
  }
  await stream.closeWrite();

  if (await answer !== CONFIRMATION) throw new Error("not confirmed");
}

/** Sends all files, and prints their progress: on a terminal in one line, otherwise in a line for each change. */
async function sendFiles(session: Session, paths: string[]): Promise<void> {
  const [lineStart, lineEnd] = process.stdout.isTTY ? ["\r\x1b[K", ""] : ["", "\n"];
  const progress = new Map<string, string>();

  // All senders share one iterator.
  const waiting = paths.values();
  const senders = Array.from({ length: CONCURRENT_FILES }, async () => {
    for (const path of waiting) {
      const outcome = await sendFile(session, path, (percent) => {
        const line = `${path} ${percent} %`;
        if (line === progress.get(path)) return;
        progress.set(path, line);
        process.stdout.write(lineStart + [...progress.values()].join("  ") + lineEnd);
      }).then(() => "confirmed", String);
      progress.delete(path);
      process.stdout.write(`${lineStart}${path}: ${outcome}\n`);
      if (outcome !== "confirmed") process.exitCode = 1;
    }
  });
  await Promise.all(senders);
}

const [command, address = "", ...paths] = process.argv.slice(2);
const [folder] = paths;
// A port alone is one of this machine.
const [, host = "127.0.0.1", port] = /^(?:(.+):)?(\d{1,5})$/.exec(address) ?? [];

if (command === "receive" && port !== undefined && folder !== undefined && paths.length === 1) {
  const listener = await listen(Number(port), host);
  console.log(`listening on ${host}:${listener.port}`);
  const onError = (error: unknown) => console.error(`${error}`);
  serve(listener, (stream) => receiveFile(stream, folder), { onError });
} else if (command === "send" && port !== undefined && paths.length > 0) {
  await using session = Session.client(connect(Number(port), host));
  await sendFiles(session, paths);
} else {
  console.error("usage: file_transfer.ts receive PORT FOLDER, or file_transfer.ts send HOST:PORT FILE…");
  process.exitCode = 2;
}
