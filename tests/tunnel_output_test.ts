/** The log of the tunnel command while it is read, not read, and cannot be written. */

import { assert, assertEquals, assertLess } from "@std/assert";
import { Display } from "../tunnel/display.ts";
import { MAX_WAITING, Output } from "../tunnel/output.ts";

/** A sink that holds back each write while it is blocked, and rejects it while it is broken. */
class FakeTerminal {
  written = "";
  readonly #decoder = new TextDecoder();
  writes = 0;
  isBroken = false;
  isTerminal = () => true;
  #blocked: PromiseWithResolvers<void> | undefined;
  #called = Promise.withResolvers<void>();

  block(): void {
    this.#blocked = Promise.withResolvers();
  }

  unblock(): void {
    this.#blocked?.resolve();
    this.#blocked = undefined;
  }

  async write(p: Uint8Array): Promise<number> {
    this.writes++;
    this.#called.resolve();
    this.#called = Promise.withResolvers();
    await this.#blocked?.promise;
    if (this.isBroken) throw new Error("Input/output error (os error 5)");
    // At most 3 bytes at a time, as a system may write less than asked.
    const count = Math.min(p.length, p.length > 1000 ? p.length : 3);
    this.written += this.#decoder.decode(p.subarray(0, count), { stream: true });
    return count;
  }

  /** Waits for `count` more writes to begin. */
  async called(count = 1): Promise<void> {
    for (let n = 0; n < count; n++) await this.#called.promise;
  }
}

Deno.test("Output.line() writes lines in order, each whole, although the system writes a part at a time", async () => {
  const sink = new FakeTerminal();
  const output = new Output(sink);
  for (const line of ["first", "second", "grüße"]) output.line(line);
  await output.flush();
  output.line("last");
  await output.flush();
  assertEquals(sink.written, "first\nsecond\ngrüße\nlast\n");
});

Deno.test("Output.line() returns while a write is blocked, drops lines without room, and reports their number", async () => {
  const sink = new FakeTerminal();
  const output = new Output(sink);
  sink.block();
  const line = "x".repeat(999);
  const total = 3 * MAX_WAITING / 1000;
  output.line(line);
  await sink.called();
  for (let n = 1; n < total; n++) output.line(line);
  assertEquals(sink.writes, 1);
  sink.unblock();
  await output.flush();
  output.line("later");
  await output.flush();
  const [, dropped] = /\n(\d+) lines were dropped: the output was not read\nlater\n$/.exec(sink.written)!;
  const written = sink.written.split("\n").filter((found) => found === line).length;
  assertEquals(written + Number(dropped), Math.ceil(total));
  assertLess(sink.written.length, MAX_WAITING + 3000);
  assert(Number(dropped) > total / 2, dropped);
});

Deno.test("Output.line() writes again after failed writes, and reports the lines of all of them", async () => {
  const sink = new FakeTerminal();
  const output = new Output(sink);
  sink.isBroken = true;
  for (const line of ["one", "two", "three"]) {
    output.line(line);
    await output.flush();
  }
  assertEquals(sink.writes, 3);
  sink.isBroken = false;
  output.line("four");
  await output.flush();
  assertEquals(sink.written, "3 lines were dropped: the output was not read\nfour\n");
});

Deno.test("Output.status() shows the newest status only, below the lines, and an empty one clears it", async () => {
  const sink = new FakeTerminal();
  const output = new Output(sink);
  output.line("a");
  output.status("1 open");
  await output.flush();
  sink.block();
  output.line("b");
  await sink.called();
  for (const status of ["2 open", "3 open"]) output.status(status);
  sink.unblock();
  await output.flush();
  output.status("");
  await output.flush();
  assertEquals(sink.written, "a\n1 open\r\x1b[Kb\n1 open\r\x1b[K3 open\r\x1b[K");
});

Deno.test("Output.status() writes nothing for the same status again", async () => {
  const sink = new FakeTerminal();
  const output = new Output(sink);
  output.status("");
  await output.flush();
  assertEquals(sink.writes, 0);
});

const NO_STATS = { connections: 0, streams: 0, open: 0, sent: 0, received: 0, reconnects: 0, dropped: 0, refused: {} };

Deno.test("Display.live() goes on when the terminal is gone, and shows the status if it comes back", async () => {
  const terminal = new FakeTerminal();
  const display = new Display(terminal, terminal);
  terminal.isBroken = true;
  const called = terminal.called(2);
  display.live(() => NO_STATS);
  await called;
  terminal.isBroken = false;
  await terminal.called();
  await display.end();
  assertEquals(terminal.written.startsWith("0 open, 0 total; sending 0.0 MB/s"), true, terminal.written);
});

Deno.test("Display.end() resolves although the last lines are not read", async () => {
  const terminal = new FakeTerminal();
  const display = new Display(terminal, terminal);
  terminal.block();
  display.line("last");
  await display.end();
  assertEquals(terminal.written, "");
  terminal.unblock();
});

Deno.test("Display.end() waits until lines that are read slowly are written", async () => {
  const [out, errors] = [new FakeTerminal(), new FakeTerminal()];
  out.isTerminal = errors.isTerminal = () => false;
  const display = new Display(out, errors);
  out.block();
  errors.block();
  display.line("total");
  display.error("lost");
  const ended = display.end();
  await out.called();
  out.unblock();
  errors.unblock();
  await ended;
  assertEquals([out.written, errors.written], ["total\n", "lost\n"]);
});

Deno.test("Display.error() writes to the log of a terminal, so that the status stays below", async () => {
  const [out, errors] = [new FakeTerminal(), new FakeTerminal()];
  const display = new Display(out, errors);
  display.error("lost");
  await display.end();
  assertEquals([out.written, errors.written], ["lost\n", ""]);
});
