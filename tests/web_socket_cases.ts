/**
 * Cases of bad input over a WebSocket, with the outcome of the session in each runtime.
 *
 * The peer is a `RawWebSocket`. In most cases it sends a stream with the data "once", then the bad input. The end under
 * test runs in another process: see `fixtures/node/web_socket.js`.
 *
 * @module
 */

import { assertEquals, assertLess, assertMatch } from "@std/assert";
import { deadline } from "@std/async";
import { concat } from "@std/bytes";
import { FIN, HEADER_LENGTH, PSH, SYN } from "../frame.ts";
import { closeQuietly } from "../transport.ts";
import { watch, type Watched } from "./programs.ts";
import { OPCODE, RawWebSocket, readHead } from "./raw_web_socket.ts";
import { bytes, frame, LOOPBACK, writeAll } from "./support.ts";

const { binary, continuation, ping, text } = OPCODE;
const MEGABYTE = 1_000_000;
// Generous, because a browser on a busy machine takes half a minute for a million pings.
const CASE_TIMEOUT_MS = 90_000;
const EXIT_TIMEOUT_MS = 10_000;

/** The end under test. */
export interface End {
  /** In Node and in a server in Bun over npm:ws, in Node 24 over its own WebSocket. */
  runtime: "Deno" | "Node" | "Node 24" | "Bun" | "Chromium" | "Firefox";
  role: "client" | "server";
}

/** An error, as an end prints it. */
interface Explained {
  name: string;
  message: string;
  code?: number;
  reason?: string;
  cause?: string;
}

/** The outcome of a session, as an end prints it. */
interface Outcome {
  /** Why the client has no session. */
  connecting?: Explained;
  /** The error that ended the session. */
  error?: Explained;
  /** The data of each accepted stream. */
  received?: string[];
  /** Growth of the peak of the resident memory, in MB. */
  grown?: number;
}

/** An expected error. `cause` matches the text of the runtime's error. */
type Expected = Omit<Explained, "cause"> & { cause?: RegExp };

interface Case {
  /** The input, and the outcome. */
  title: string;
  /** The query for the end under test. */
  query?: string;
  role?: End["role"];
  /** The response of a server that refuses the WebSocket; `null`: none. Default: status 101. */
  response?: string | null;
  /** Sends the input, after the handshake. */
  play?(peer: RawWebSocket, id: number): Promise<void>;
  /** The error that ends the session; `undefined`: it ends cleanly. */
  error?: (end: End) => Expected | undefined;
  /** The data of each stream. Default: `["once"]`. */
  received?: string[];
  /** The code of the close frame that the end under test sends. Default: not checked. */
  closes?(end: End): number;
  /** Limit of the growth of the peak of the resident memory, in MB. Default: 64. */
  growth?(end: End): number;
}

/** Returns the error of a lost WebSocket. */
function lost(code: number, reason = "", cause?: RegExp): Expected {
  const message = `The WebSocket was closed with code ${code}${reason && `: ${reason}`}`;
  return { name: "WebSocketClosedError", message, code, reason, ...cause && { cause } };
}

function timedOut(message: string): Expected {
  // The code of a DOMException with this name.
  return { name: "TimeoutError", message, code: 23 };
}

function notSmux(expected: string, received: string): Expected {
  return { name: "ProtocolError", message: `Not valid smux at byte 20: expected ${expected}, received ${received}` };
}

const isBrowser = ({ runtime }: End) => runtime === "Chromium" || runtime === "Firefox";

/** A client in Deno, Node 24 or a browser may send only 1000 and 3000 to 4999. */
const sends = (code: number) => ({ runtime, role }: End) =>
  role === "client" && runtime !== "Node" && runtime !== "Bun" ? 3000 + code : code;

/** Whether the end has the `maxPayload` of npm:ws. */
const isLimited = ({ runtime, role }: End) => runtime === "Node" || (runtime === "Bun" && role === "server");

/** Encode a stream with the data "once": without its FIN, and with it. */
const start = (id: number) => concat([frame(1, SYN, id), frame(1, PSH, id, bytes("once"))]);
const whole = (id: number) => concat([start(id), frame(1, FIN, id)]);

/** Sends a frame `times` times, 10,000 of them in each write. */
async function repeat(peer: RawWebSocket, frame: Uint8Array, times: number): Promise<void> {
  const batch = concat(Array.from({ length: 10_000 }, () => frame));
  for (let sent = 0; sent < times; sent += 10_000) await writeAll(peer.connection, batch);
}

function refusal(status: string): Case {
  return {
    title: `a server that answers "${status}" with HTML: the cause has the status`,
    role: "client",
    response: `HTTP/1.1 ${status}\r\ncontent-type: text/html\r\ncontent-length: 15\r\n\r\n<h1>sorry</h1>\n`,
    error: () => lost(1006, "", new RegExp(status.slice(0, 3))),
    received: [],
  };
}

// Codes that an end may send, and codes that are reserved, unassigned or out of range.
const VALID_CODES = [1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4999];
const INVALID_CODES = [999, 1004, 1005, 1006, 1015, 1016, 2999, 5000];

function closing(code: number | undefined, outcome: string, error: (end: End) => Expected | undefined): Case {
  return {
    title: `a close frame with ${code === undefined ? "no code" : `code ${code}`}: ${outcome}`,
    async play(peer, id) {
      await peer.send(binary, whole(id));
      await peer.sendClose(code, code === undefined ? "" : "why");
    },
    error,
  };
}

/** Browsers report most codes that are reserved or out of range. */
const invalidCode = (code: number) => ({ runtime }: End) => {
  if (runtime === "Firefox") return code === 1005 ? undefined : lost(code, "why");
  if (runtime === "Chromium" && ![1005, 1006, 1015].includes(code)) return lost(code, "why");
  return lost(1006, "", /invalid (close|status) code/i);
};

/** Returns a case in which the peer sends the stream without its FIN, then bad input. */
function after(
  title: string,
  bad: (peer: RawWebSocket, id: number) => Promise<void>,
  error: (end: End) => Expected | undefined,
): Case {
  const play = async (peer: RawWebSocket, id: number) => {
    await peer.send(binary, start(id));
    await bad(peer, id);
  };
  return { title, play, error };
}

const SILENT = "The peer was silent for 500 ms: if it sends no keepalive, raise `timeout` or set it to Infinity";
const NEVER_HEARD = `${SILENT}; no byte was ever received: the peer may speak version 1, which is Go's default`;
const OVERFLOW = "More than 1000000 bytes arrived before they were read";

// Memory in which a runtime assembles a message of 100 MB: Deno copies it once, Chromium several times.
const assembly = ({ runtime }: End) => runtime === "Chromium" ? 700 : 300;

const CASES: Case[] = [
  ...["401 Unauthorized", "404 Not Found", "502 Bad Gateway"].map(refusal),
  {
    title: "a server that does not answer the handshake: a timeout",
    role: "client",
    query: "timeout=500",
    response: null,
    error: ({ runtime }) => timedOut(runtime === "Node" ? NEVER_HEARD : "The WebSocket did not open within 500 ms"),
    received: [],
  },
  {
    title: "close() before the handshake is answered: a timeout of close()",
    role: "client",
    query: "timeout=500&then=close",
    response: null,
    error: () => timedOut("The session did not close within 250 ms"),
    received: [],
  },
  {
    title: "close() before open: a clean end with code 1000",
    role: "client",
    query: "then=close",
    play: async () => {},
    received: [],
    closes: () => 1000,
  },
  {
    title: "abort() before open: the reason of abort()",
    role: "client",
    query: "then=abort",
    response: null,
    error: () => ({ name: "AbortError", message: "The session was aborted", code: 20 }),
    received: [],
  },
  {
    title: "a peer that is silent after the handshake: a timeout",
    query: "timeout=500",
    play: async () => {},
    error: () => timedOut(NEVER_HEARD),
    received: [],
    closes: sends(1001),
  },
  closing(undefined, "a clean end", () => undefined),
  closing(1000, "a clean end", () => undefined),
  ...VALID_CODES.map((code) => closing(code, "the code and the reason", () => lost(code, "why"))),
  closing(1014, "code 1006 in Deno", (end) => end.runtime === "Deno" ? invalidCode(1014)(end) : lost(1014, "why")),
  ...INVALID_CODES.map((code) => closing(code, "code 1006, but not in browsers", invalidCode(code))),
  after(
    "a close frame with 1000 inside a smux frame: a ProtocolError",
    async (peer, id) => {
      await peer.send(binary, frame(1, PSH, id, bytes("lost")).subarray(0, HEADER_LENGTH));
      await peer.sendClose(1000);
    },
    () => notSmux("4 more bytes of PSH payload", "the end of the connection"),
  ),
  {
    title: "2000 messages of 0 bytes and a message in 20 fragments with pings: no effect",
    async play(peer, id) {
      for (let n = 0; n < 1000; n++) await peer.send(binary);
      const message = whole(id);
      for (const [at, byte] of message.entries()) {
        const fields = { isFinal: at === message.length - 1 };
        await peer.send(at === 0 ? binary : continuation, Uint8Array.of(byte), fields);
        await peer.send(ping);
      }
      for (let n = 0; n < 1000; n++) await peer.send(binary);
      await peer.sendClose(1000);
    },
  },
  {
    title: "100,000 messages of 0 bytes: no effect",
    async play(peer, id) {
      await repeat(peer, peer.encode(binary), 100_000);
      await peer.send(binary, whole(id));
      await peer.sendClose(1000);
    },
    // A browser queues an event for each.
    growth: (end) => isBrowser(end) ? 128 : 64,
  },
  {
    ...after(
      "text: a ProtocolError, and code 1003",
      (peer) => peer.send(text, bytes("hello")),
      () => notSmux("a binary message", "text"),
    ),
    closes: sends(1003),
  },
  after(
    "text that is not UTF-8: code 1006",
    (peer) => peer.send(text, Uint8Array.of(0xff)),
    () => lost(1006, "", /invalid utf-8/i),
  ),
  after(
    "a frame with a reserved opcode: code 1006",
    (peer) => peer.send(3, new Uint8Array(1)),
    () => lost(1006, "", /invalid/i),
  ),
  after(
    "a frame with a reserved bit: code 1006",
    (peer) => peer.send(binary | 0x40, new Uint8Array(1)),
    () => lost(1006, "", /reserved bits|RSV1/i),
  ),
  after(
    "a continuation without a start: code 1006",
    (peer) => peer.send(continuation, new Uint8Array(1)),
    () => lost(1006, "", /invalid/i),
  ),
  after(
    "a ping of 126 bytes: code 1006",
    (peer) => peer.send(ping, new Uint8Array(126)),
    () => lost(1006, "", /too large|invalid payload length/i),
  ),
  after(
    "a close frame of one byte: code 1006, but a clean end in Firefox",
    (peer) => peer.send(OPCODE.close, new Uint8Array(1)),
    ({ runtime }) => runtime === "Firefox" ? undefined : lost(1006, "", /invalid/i),
  ),
  after(
    "a connection that is cut between frames: code 1006",
    (peer) => Promise.resolve(peer.connection.close()),
    () => lost(1006),
  ),
  after(
    "a connection that is cut inside the header of a frame: code 1006",
    async (peer) => {
      await writeAll(peer.connection, peer.encode(binary, undefined, { length: 1000 }).subarray(0, 3));
      peer.connection.close();
    },
    () => lost(1006),
  ),
  after(
    "a connection that is cut inside the payload of a frame: code 1006",
    async (peer, id) => {
      await peer.send(binary, frame(1, PSH, id, bytes("lost")), { length: 1000 });
      peer.connection.close();
    },
    () => lost(1006),
  ),
  after(
    "a connection that is cut inside a message in fragments: code 1006",
    async (peer, id) => {
      await peer.send(binary, frame(1, PSH, id, bytes("lost")), { isFinal: false });
      peer.connection.close();
    },
    () => lost(1006),
  ),
  {
    title: "a million pings: each is answered, but npm:ws in Node cuts the connection",
    async play(peer, id) {
      await peer.send(binary, start(id));
      await repeat(peer, peer.encode(ping), 1_000_000);
      await peer.send(binary, frame(1, FIN, id));
      await peer.sendClose(1000);
    },
    error: ({ runtime }) => runtime === "Node" ? lost(1006) : undefined,
  },
  {
    ...after(
      "fragments without an end: a timeout, or code 1006 with the maxPayload of npm:ws",
      async (peer) => {
        for (let n = 0; n < 30; n++) {
          await peer.send(n === 0 ? binary : continuation, new Uint8Array(MEGABYTE), { isFinal: false });
        }
      },
      (end) => isLimited(end) ? lost(1006, "", /max payload size/i) : timedOut(SILENT),
    ),
    query: "timeout=500",
  },
  {
    ...after(
      "a frame of 100 MB: code 1009, or 1006 in Deno and with the maxPayload of npm:ws",
      async (peer) => {
        await writeAll(peer.connection, peer.encode(binary, undefined, { length: 100 * MEGABYTE }));
        for (let n = 0; n < 100; n++) await writeAll(peer.connection, new Uint8Array(MEGABYTE));
      },
      (end) =>
        end.runtime === "Deno" || isLimited(end) ? lost(1006, "", /too large|max payload size/i) : lost(1009, OVERFLOW),
    ),
    growth: (end) => end.runtime === "Deno" || isLimited(end) ? 64 : assembly(end),
  },
  {
    ...after(
      "a message of 100 MB in fragments: code 1009, or 1006 with the maxPayload of npm:ws",
      async (peer) => {
        for (let n = 0; n < 100; n++) {
          await peer.send(n === 0 ? binary : continuation, new Uint8Array(MEGABYTE), { isFinal: n === 99 });
        }
      },
      (end) => isLimited(end) ? lost(1006, "", /max payload size/i) : lost(1009, OVERFLOW),
    ),
    growth: (end) => isLimited(end) ? 64 : assembly(end),
  },
];

/** Returns the outcome that an end prints in this line. */
async function outcomeIn(line: number, end: Watched): Promise<Outcome> {
  const [, printed] = await end.until(new RegExp(`^(?:.*\\n){${line}}(.*)\\n`));
  return JSON.parse(printed!);
}

/** Runs a case over a connection to the end under test, whose outcome is printed in this line. */
async function runCase(one: Case, end: End, process: Watched, line: number, peer?: RawWebSocket): Promise<void> {
  const closed = peer?.nextClose().catch(() => undefined);
  // npm:ws emits its close event at the end of the TCP connection.
  closed?.then(() => closeQuietly(peer!.connection));
  // Rejects when the end under test cuts the connection.
  if (peer !== undefined) one.play?.(peer, end.role === "client" ? 2 : 3).catch(() => {});
  const { connecting, error = connecting, received = [], grown = 0 } = await outcomeIn(line, process);
  const { cause, ...rest } = error ?? {};
  const { cause: pattern, ...expected } = one.error?.(end) ?? {};
  assertEquals(rest, expected);
  // Others have other words, and browsers hide the cause.
  if (pattern !== undefined && (end.runtime === "Deno" || end.runtime === "Node")) assertMatch(cause ?? "", pattern);
  // A browser may drop the messages before a failure.
  const isDropped = received.length === 0 && isBrowser(end) && error?.code === 1006;
  assertEquals(received, isDropped ? [] : one.received ?? ["once"]);
  assertLess(grown, one.growth?.(end) ?? 64);
  if (one.closes !== undefined) assertEquals(await deadline(closed!, EXIT_TIMEOUT_MS), one.closes(end));
}

/** Runs all cases as steps of a test. The end under test is started as `[...command, ...args]`. */
export async function runCases(
  end: End,
  step: (title: string, run: () => Promise<void>) => Promise<unknown>,
  command: string[],
): Promise<void> {
  const cases = CASES.filter(({ role = end.role }) => role === end.role);
  const paths = cases.map(({ query = "" }, n) => `/${n}?${query}`);
  const isClient = end.role === "client";
  using clients = new Clients(cases);
  const own = isClient ? ["client", `${clients.port}`, ...paths] : ["server"];
  const [program, ...args] = [...command, ...own];
  await using process = watch(
    new Deno.Command(program!, { args, stdin: "null", stdout: "piped", stderr: "piped" }).spawn(),
    CASE_TIMEOUT_MS,
  );
  const [port] = isClient ? [] : await process.until(/^\d+\n/);
  for (const [n, one] of cases.entries()) {
    await step(one.title, async () => {
      const connect = () => isClient ? clients.peer(n) : RawWebSocket.connect(Number(port), paths[n]!);
      const peer = one.play && await connect();
      await runCase(one, end, process, isClient ? n : n + 1, peer);
      if (peer !== undefined) closeQuietly(peer.connection);
    });
  }
  if (isClient) assertEquals((await deadline(process.ended(), EXIT_TIMEOUT_MS)).code, 0);
  assertEquals(process.printed.stderr, "");
}

/** Accepts the clients of all cases. One that aborts its attempt may arrive late or never. */
class Clients implements Disposable {
  readonly #cases: Case[];
  readonly #listener = Deno.listen(LOOPBACK);
  readonly #connections: Deno.Conn[] = [];
  readonly #peers: PromiseWithResolvers<RawWebSocket>[];

  constructor(cases: Case[]) {
    this.#cases = cases;
    this.#peers = cases.map(() => Promise.withResolvers());
    this.#accept();
  }

  get port(): number {
    return this.#listener.addr.port;
  }

  /** Resolves when the client of a case without a response is accepted. */
  peer(n: number): Promise<RawWebSocket> {
    return deadline(this.#peers[n]!.promise, CASE_TIMEOUT_MS);
  }

  async #accept(): Promise<void> {
    for await (const connection of this.#listener) {
      this.#connections.push(connection);
      // A client that aborts its attempt sends no request, or only a part of it.
      this.#answer(connection).catch(() => {});
    }
  }

  async #answer(connection: Deno.Conn): Promise<void> {
    const head = await readHead(connection);
    const n = Number(/^GET \/(\d+)/.exec(head)![1]);
    const { response } = this.#cases[n]!;
    if (response === undefined) this.#peers[n]!.resolve(await RawWebSocket.accept(connection, head));
    else if (response !== null) await writeAll(connection, bytes(response));
  }

  [Symbol.dispose](): void {
    this.#listener.close();
    this.#connections.forEach(closeQuietly);
  }
}
