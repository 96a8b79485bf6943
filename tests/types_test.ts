/**
 * What fits where. Most of it is tested by compiling, since `deno test` checks types: a call of `fits` does nothing, and
 * each `@ts-expect-error` fails where there is no error.
 *
 * @module
 */
import { assertEquals, assertInstanceOf, assertStringIncludes, assertThrows } from "@std/assert";
import {
  type Address,
  type ClientSessionOptions,
  type Connection,
  type DuplexConnection,
  type join,
  type Listener,
  type Receiver,
  type Sender,
  type ServeOptions,
  type ServerSessionOptions,
  Session,
  type SessionOptions,
  type Stream,
  type Transport,
} from "../mod.ts";

/** Compiles if a `From` can stand where a `To` is asked for. */
function fits<From extends To, To>(): void {}

/** A pair of web streams, as a transport that nobody is behind. */
function pair() {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  return { readable, writable };
}

// A WebTransport stream, by shape, for runtimes whose types do not have it.
interface BidirectionalStream {
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>;
  readonly writable: WritableStream<Uint8Array<ArrayBufferLike>>;
}

Deno.test("Deno's connections fit as transport", () => {
  fits<Deno.TcpConn, Transport>();
  fits<Deno.TlsConn, Transport>();
  fits<Deno.UnixConn, Transport>();
  fits<Deno.VsockConn, Transport>();
  fits<Deno.Conn, Transport>();
  fits<Deno.TcpConn, Connection>();
  fits<Deno.TlsConn, Connection>();
  fits<Deno.UnixConn, Connection>();
  fits<Deno.Conn, Connection>();
});

Deno.test("pairs of web streams fit as transport: a WebSocketStream's, a child's pipes, a WebTransport stream", () => {
  fits<WebSocketConnection, Transport>();
  fits<{ readable: Deno.ChildProcess["stdout"]; writable: Deno.ChildProcess["stdin"] }, Transport>();
  fits<WebTransportBidirectionalStream, Transport>();
  fits<BidirectionalStream, Transport>();
  fits<TransformStream<Uint8Array, Uint8Array>, Transport>();
});

Deno.test("a Stream fits as transport, as Deno.Conn and as a pair of web streams", () => {
  fits<Stream, Transport>();
  fits<Stream, Connection>();
  fits<Stream, Deno.Conn>();
  fits<Stream, BidirectionalStream>();
  fits<Stream, Disposable & AsyncDisposable>();
});

Deno.test("what carries no bytes does not fit as transport", () => {
  // @ts-expect-error: chunks that are no bytes
  fits<{ readable: ReadableStream<number>; writable: WritableStream<Uint8Array> }, Transport>();
  // @ts-expect-error: a sink that takes no bytes
  fits<{ readable: ReadableStream<Uint8Array>; writable: WritableStream<string> }, Transport>();
  // @ts-expect-error: one direction only
  fits<{ readable: ReadableStream<Uint8Array> }, Transport>();
  // @ts-expect-error: it cannot be closed
  fits<Pick<Deno.TcpConn, "read" | "write">, Transport>();
  // @ts-expect-error: a session is none, only its streams are
  fits<Session, Transport>();
  // @ts-expect-error: nor is a socket that sends whole messages
  fits<Deno.DatagramConn, Transport>();
  // @ts-expect-error: nor a WebSocketStream that is not open yet
  fits<WebSocketStream, Transport>();
});

Deno.test("Deno's listeners fit serve, its connections and a Stream fit join, its addresses are addresses", () => {
  fits<Deno.TcpListener, Listener>();
  fits<Deno.TlsListener, Listener>();
  fits<Deno.UnixListener, Listener>();
  fits<Deno.Listener, Listener>();
  fits<Deno.TcpConn, DuplexConnection>();
  fits<Deno.TlsConn, DuplexConnection>();
  fits<Deno.UnixConn, DuplexConnection>();
  fits<Stream, DuplexConnection>();
  fits<Deno.Conn, Parameters<typeof join>[0]>();
  fits<Deno.Addr, Address>();
  fits<Deno.NetAddr, Address>();
  fits<Deno.UnixAddr, Address>();
});

Deno.test("a session is what its interfaces say, and its streams come as Streams", () => {
  fits<Session, AsyncDisposable & AsyncIterable<Stream>>();
  fits<Session["incoming"], Receiver<Stream>>();
  fits<Receiver<Stream>, Session["incoming"]>();
  fits<Session["version"], 1 | 2 | undefined>();
  fits<Awaited<ReturnType<Session["openStream"]>>, Stream>();
  fits<Awaited<ReturnType<Session["acceptStream"]>>, Stream>();
  fits<Awaited<ReturnType<Stream["read"]>>, number | null>();
  fits<Stream["readable"], ReadableStream<Uint8Array<ArrayBuffer>>>();
});

Deno.test("an option may be left out or undefined, and its right kinds are taken", () => {
  fits<{ signal: undefined }, NonNullable<Parameters<Session["openStream"]>[0]>>();
  fits<{ [Name in keyof ClientSessionOptions]: undefined }, ClientSessionOptions>();
  fits<{ [Name in keyof ServerSessionOptions]: undefined }, ServerSessionOptions>();
  fits<{ incoming: Sender<Stream> }, SessionOptions>();
  fits<{ version: 1 | 2 }, ClientSessionOptions>();
  fits<{ version: 1 | 2 | "auto" }, ServerSessionOptions>();
});

Deno.test("options of a wrong kind do not compile", () => {
  // @ts-expect-error: a number, not text
  fits<{ timeout: string }, SessionOptions>();
  // @ts-expect-error: a number, not a bigint
  fits<{ maxReceiveBuffer: bigint }, SessionOptions>();
  // @ts-expect-error: undefined leaves an option out, null does not
  fits<{ keepAliveInterval: null }, SessionOptions>();
  // @ts-expect-error: the sending end, not the receiving one
  fits<{ incoming: Receiver<Stream> }, SessionOptions>();
  // @ts-expect-error: of streams
  fits<{ incoming: Sender<Uint8Array> }, SessionOptions>();
  // @ts-expect-error: there are two versions
  fits<{ version: 3 }, ServerSessionOptions>();
  // @ts-expect-error: as numbers
  fits<{ version: "2" }, ServerSessionOptions>();
  // @ts-expect-error: a client has nothing to learn the version from
  fits<{ version: "auto" }, ClientSessionOptions>();
  // @ts-expect-error: the streams of serve go to its handler
  const taken: ServeOptions = { incoming: undefined };
  assertEquals(Object.keys(taken), ["incoming"]);
});

Deno.test('"auto" on a client is a type error and a RangeError, and leaves the transport alone', () => {
  const transport = pair();
  // @ts-expect-error: a client has nothing to learn the version from
  const error = assertThrows(() => Session.client(transport, { version: "auto" }), RangeError);
  assertEquals(error.message, "version must be 1 or 2, received auto");
  assertEquals([transport.readable.locked, transport.writable.locked], [false, false]);
});

const NUMBERS = [
  "keepAliveInterval",
  "timeout",
  "stalledStreamTimeout",
  "maxFrameSize",
  "maxReceiveBuffer",
  "maxStreamBuffer",
  "maxStreams",
  "acceptBacklog",
] as const;

Deno.test("an option that is no number at run time is a RangeError that names it, and leaves the transport alone", () => {
  for (const name of NUMBERS) {
    for (const value of ["1000", "", true, false, 1000n, NaN, {}, [1000], () => 1000]) {
      for (const start of [Session.client, Session.server]) {
        const transport = pair();
        const options = { [name]: value } as SessionOptions;
        assertThrows(() => start(transport, options), RangeError, `${name} must be `, `${name}: ${String(value)}`);
        assertEquals([transport.readable.locked, transport.writable.locked], [false, false]);
      }
    }
  }
});

Deno.test("a version that is not one of those there are, as a number, is a RangeError and leaves the transport alone", () => {
  const taken: unknown[] = [];
  for (const value of [0, 3, -1, 1.5, NaN, true, "1", "2", "Auto", "", {}, [2], 2n]) {
    const options = { version: value } as ClientSessionOptions;
    for (const [start, expected] of [[Session.client, "1 or 2"], [Session.server, '1, 2 or "auto"']] as const) {
      const transport = pair();
      try {
        start(transport, options).abort();
        taken.push(value);
      } catch (error) {
        assertInstanceOf(error, RangeError);
        assertStringIncludes(error.message, `version must be ${expected}, received `);
        assertEquals([transport.readable.locked, transport.writable.locked], [false, false]);
      }
    }
  }
  assertEquals(taken, []);
});

Deno.test("an incoming that is not the sending end of a channel is a TypeError", () => {
  for (const value of [5, "incoming", {}, [], () => {}]) {
    const transport = pair();
    const options = { incoming: value } as unknown as ServerSessionOptions;
    assertThrows(() => Session.server(transport, options), TypeError, "incoming");
    assertEquals([transport.readable.locked, transport.writable.locked], [false, false]);
  }
});

Deno.test("what is no transport at run time is a TypeError that says what one has", () => {
  for (const value of [undefined, null, 5, "tcp", {}, [], { read() {} }, { readable: new ReadableStream() }]) {
    for (const start of [Session.client, Session.server]) {
      assertThrows(
        () => start(value as unknown as Transport),
        TypeError,
        "Cannot use transport: expected read, write and close, or readable and writable streams, or a stream of Node",
      );
    }
  }
});
