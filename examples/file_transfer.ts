/**
 * Sends files over one connection, four at a time. To smux a stream that was cut looks like one that ended: so a header
 * of 1024 bytes tells length, SHA-256 and name of a file, which counts as sent only when the receiver has answered.
 * ```sh
 * deno run --allow-net --allow-read --allow-write examples/file_transfer.ts receive 9000 FOLDER
 * deno run --allow-net --allow-read examples/file_transfer.ts send localhost:9000 FILE…
 * ```
 * @module
 */
import { createHash } from "node:crypto";
import { serve, Session } from "@sluice/smux";
import { pooledMap } from "@std/async";
async function lengthAndHash(path: string): Promise<string> {
  const hash = createHash("sha256");
  for await (const chunk of (await Deno.open(path)).readable) hash.update(chunk);
  return `${(await Deno.stat(path)).size} ${hash.digest("hex")}`;
}

const [command, address = "", ...paths] = Deno.args;
const { hostname = "", port = "" } = URL.parse(`tcp://${address.replace(/^\d+$/, "127.0.0.1:$&")}`) ?? {};
if (command === "receive" && port !== "" && paths.length === 1) {
  const listener = Deno.listen({ hostname, port: Number(port) });
  console.log(`listening on ${hostname}:${listener.addr.port}`);
  serve(listener, async (stream) => {
    const header = new Uint8Array(1024);
    for (let at = 0; at < header.length;) {
      const count = await stream.read(header.subarray(at));
      if (count === null) throw new Error(`the stream ended after ${at} bytes of its header`);
      at += count;
    }
    const [length, hash, name = ""] = new TextDecoder().decode(header).trim().split(" ").map(decodeURIComponent);
    if (/^\.{0,2}$|[/\\:\p{Cc}]/u.test(name)) throw new Error(`not a name for a file: ${JSON.stringify(name)}`);
    const part = await Deno.makeTempFile({ dir: paths[0]!, suffix: ".part" });
    await Deno.writeFile(part, stream.readable);
    if (await lengthAndHash(part) !== `${length} ${hash}`) throw new Error(`${name} did not come whole: see ${part}`);
    await Deno.rename(part, `${paths[0]}/${name}`);
    await stream.write(new TextEncoder().encode("received"));
    console.log(`received ${name}: ${length} bytes, SHA-256 ${hash}`);
  }, { onError: (error) => console.error(`${error}`) });
} else if (command === "send" && port !== "" && paths.length > 0) {
  const print = (text: string) => Deno.stdout.writeSync(new TextEncoder().encode(text));
  const [start, end] = Deno.stdout.isTerminal() ? ["\r\x1b[K", ""] : ["", "\n"];
  const progress = new Map<string, string>();
  await using session = Session.client(await Deno.connect({ hostname, port: Number(port) }));
  await Array.fromAsync(pooledMap(4, paths, async (path) => {
    const header = `${await lengthAndHash(path)} ${encodeURIComponent(path.split(/[/\\]/).pop()!)}`.padEnd(1024);
    using stream = await session.openStream();
    const answer = new Response(stream.readable).text().catch(() => "").finally(() => stream.close());
    await stream.write(new TextEncoder().encode(header));
    let sent = 0;
    for await (const chunk of (await Deno.open(path)).readable) {
      if (await stream.write(chunk).catch(() => 0) === 0) break; // refused: an early answer closed the stream
      const line = `${path} ${Math.floor(100 * (sent += chunk.length) / parseInt(header))} %`;
      if (line !== progress.get(path)) print(start + [...progress.set(path, line).values()].join("  ") + end);
    }
    if (await stream.closeWrite().then(() => answer) !== "received") throw new Error(`${path}: not confirmed`);
    progress.delete(path);
    print(`${start}${path}: confirmed\n`);
  }));
} else {
  console.error("usage: file_transfer.ts receive PORT FOLDER, or file_transfer.ts send HOST:PORT FILE…");
  Deno.exitCode = 2;
}
