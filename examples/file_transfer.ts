/**
 * Sends files over one connection, four at a time.
 *
 * In smux an interrupted stream looks like one that ended. So each file follows a header of 1024 bytes, with its
 * length, SHA-256 and name, and counts as sent only when the receiver has confirmed it.
 *
 * ```sh
 * deno run --allow-net --allow-read --allow-write examples/file_transfer.ts receive 9000 FOLDER
 * deno run --allow-net --allow-read examples/file_transfer.ts send localhost:9000 FILE…
 * ```
 *
 * @module
 */
import { createHash } from "node:crypto";
import { serve, Session, type Stream } from "@sluice/smux";
import { pooledMap } from "@std/async";

const HEADER_LENGTH = 1024;
const CONFIRMATION = "received";
const CONCURRENT_FILES = 4;

/** Returns the length and the SHA-256 of a file, as the header has them. */
async function lengthAndHash(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of (await Deno.open(path)).readable) hash.update(chunk);
  return `${(await Deno.stat(path)).size} ${hash.digest("hex")}`;
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
  const part = await Deno.makeTempFile({ dir: folder, suffix: ".part" });
  await Deno.writeFile(part, stream.readable);
  if (await lengthAndHash(part) !== `${length} ${hash}`) {
    throw new Error(`${name} is incomplete or corrupt: see ${part}`);
  }
  await Deno.rename(part, `${folder}/${name}`);

  await stream.write(new TextEncoder().encode(CONFIRMATION));
  console.log(`received ${name}: ${length} bytes, SHA-256 ${hash}`);
}

/** Sends one file, and waits until it is confirmed. */
async function sendFile(session: Session, path: string, onProgress: (percent: number) => void): Promise<void> {
  const description = await lengthAndHash(path);
  const length = parseInt(description);
  const name = path.split(/[/\\]/).pop()!;
  const header = `${description} ${encodeURIComponent(name)}`.padEnd(HEADER_LENGTH);

  using stream = await session.openStream();
  const answer = new Response(stream.readable).text().catch(() => "").finally(() => stream.close());
  await stream.write(new TextEncoder().encode(header));

  let sent = 0;
  for await (const chunk of (await Deno.open(path)).readable) {
    // A receiver that refuses the file answers before its end, and then the stream is closed.
    if (await stream.write(chunk).catch(() => 0) === 0) break;
    sent += chunk.length;
    onProgress(Math.floor(100 * sent / length));
  }
  await stream.closeWrite();

  if (await answer !== CONFIRMATION) throw new Error(`${path}: not confirmed`);
}

/** Sends all files, and prints their progress: on a terminal in one line, otherwise in a line for each change. */
async function sendFiles(session: Session, paths: string[]): Promise<void> {
  const print = (text: string) => Deno.stdout.writeSync(new TextEncoder().encode(text));
  const [lineStart, lineEnd] = Deno.stdout.isTerminal() ? ["\r\x1b[K", ""] : ["", "\n"];
  const progress = new Map<string, string>();

  const sending = pooledMap(CONCURRENT_FILES, paths, async (path) => {
    await sendFile(session, path, (percent) => {
      const line = `${path} ${percent} %`;
      if (line === progress.get(path)) return;
      progress.set(path, line);
      print(lineStart + [...progress.values()].join("  ") + lineEnd);
    });
    progress.delete(path);
    print(`${lineStart}${path}: confirmed\n`);
  });
  await Array.fromAsync(sending);
}

const [command, address = "", ...paths] = Deno.args;
const [folder] = paths;
// A port alone is one of this machine.
const { hostname = "", port = "" } = URL.parse(`tcp://${address.replace(/^\d+$/, "127.0.0.1:$&")}`) ?? {};

if (command === "receive" && port !== "" && folder !== undefined && paths.length === 1) {
  const listener = Deno.listen({ hostname, port: Number(port) });
  console.log(`listening on ${hostname}:${listener.addr.port}`);
  const onError = (error: unknown) => console.error(`${error}`);
  serve(listener, (stream) => receiveFile(stream, folder), { onError });
} else if (command === "send" && port !== "" && paths.length > 0) {
  await using session = Session.client(await Deno.connect({ hostname, port: Number(port) }));
  await sendFiles(session, paths);
} else {
  console.error("usage: file_transfer.ts receive PORT FOLDER, or file_transfer.ts send HOST:PORT FILE…");
  Deno.exitCode = 2;
}
