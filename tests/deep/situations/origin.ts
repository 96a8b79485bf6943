/**
 * A server behind a tunnel: `origin.ts PORT NAME`. It reads the first line of each request and leaves the rest unread, so
 * that the kernel resets its connections when the process is killed.
 *
 * - `/hello`: a short answer with NAME.
 * - `/endless`: bytes without an end, and without a length: only a reset shows that they are not complete.
 * - `/length`: bytes without an end, with a length.
 * - `/file/SIZE/TIME`: SIZE bytes within TIME milliseconds.
 * - `/silent`: nothing; the connection stays open.
 *
 * It prints when a connection ends.
 *
 * @module
 */

import { setTimeout } from "node:timers/promises";
import { bytes, pattern, text, writeAll } from "../../support.ts";

const CHUNK = new Uint8Array(64 * 1024);
// Milliseconds between the parts of a file.
const PAUSE = 200;

/** Files by size. */
const files = new Map<number, Uint8Array>();

async function readLine(connection: Deno.TcpConn): Promise<string> {
  const line: number[] = [];
  const p = new Uint8Array(1);
  while (line.at(-1) !== 10 && await connection.read(p) !== null) line.push(p[0]!);
  return text(new Uint8Array(line));
}

function head(length?: number): Uint8Array {
  const lines = ["HTTP/1.1 200 OK", "Connection: close"];
  if (length !== undefined) lines.push(`Content-Length: ${length}`);
  return bytes(`${lines.join("\r\n")}\r\n\r\n`);
}

async function answer(connection: Deno.TcpConn, name: string): Promise<void> {
  const [, path = ""] = (await readLine(connection)).split(" ");
  const [, kind, ...numbers] = path.split("/");
  const [size = 0, time = 0] = numbers.map(Number);
  switch (kind) {
    case "endless":
    case "length":
      await writeAll(connection, head(kind === "length" ? 1e12 : undefined));
      for (;;) await writeAll(connection, CHUNK);
    case "file": {
      const file = files.get(size) ?? pattern(size, size);
      files.set(size, file);
      await writeAll(connection, head(size));
      const part = Math.ceil(size / Math.max(1, time / PAUSE));
      for (let at = 0; at < size; at += part) {
        await writeAll(connection, file.subarray(at, at + part));
        await setTimeout(PAUSE);
      }
      break;
    }
    case "silent":
      break;
    default: {
      const body = bytes(`hello from ${name}\n`);
      await writeAll(connection, head(body.length));
      await writeAll(connection, body);
    }
  }
  const p = new Uint8Array(4096);
  // Closing with unread bytes would reset the connection.
  if (kind !== "silent") await connection.closeWrite();
  while (await connection.read(p) !== null);
}

async function serve(connection: Deno.TcpConn, name: string): Promise<void> {
  const began = performance.now();
  const { port } = connection.remoteAddr;
  const outcome = await answer(connection, name).then(() => "closed", (error: Error) => error.name);
  console.log(`the connection from port ${port} ended after ${Math.round(performance.now() - began)} ms: ${outcome}`);
  connection.close();
}

if (import.meta.main) {
  const [port, name] = Deno.args as [string, string];
  const listener = Deno.listen({ hostname: "127.0.0.1", port: Number(port) });
  console.log(`${name} listens on port ${port}`);
  for await (const connection of listener) serve(connection, name);
}
