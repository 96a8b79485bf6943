/**
 * Types of the public interface. Most tests only compile, since `deno test` checks types: a call of `fits` does
 * nothing, and each `@ts-expect-error` fails where there is no error.
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

/** Compiles if `From` is assignable to `To`. */
function fits<From extends To, To>(): void {}

/** A pair of web streams, as a transport without a peer. */
function pair() {
  const { readable, writable } = new TransformStream<Uint8Array, Uint8Array>();
  return { readable, writable };
}

// The shape of a WebTransport stream, for runtimes whose types do not have it.
interface BidirectionalStream {
  readonly readable: ReadableStream<Uint8Array<ArrayBuffer>>;
  readonly writable: WritableStream<Uint8Array<ArrayBufferLike>>;
}

Deno.test("Transport: Deno's connections are assignable", () => {
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

Deno.test("Transport: pairs of web streams are assignable, as of a WebSocketStream, a child process or WebTransport", () => {
  fits<WebSocketConnection, Transport>();
  fits<{ readable: Deno.ChildProcess["stdout"]; writable: Deno.ChildProcess["stdin"] }, Transport>();
  fits<WebTransportBidirectionalStream, Transport>();
  fits<BidirectionalStream, Transport>();
  fits<TransformStream<Uint8Array, Uint8Array>, Transport>();
});

Deno.test("Stream is assignable to Transport, Deno.Conn and a pair of web streams", () => {
  fits<Stream, Transport>();
  fits<Stream, Connection>();
  fits<Stream, Deno.Conn>();
  fits<Stream, BidirectionalStream>();
  fits<Stream, Disposable & AsyncDisposable>();
});

Deno.test("Transport: values that do not carry bytes are not assignable", () => {
  // @ts-expect-error: chunks that are not bytes
  fits<{ readable: ReadableStream<number>; writable: WritableStream<Uint8Array> }, Transport>();
  // @ts-expect-error: a sink that does not accept bytes
  fits<{ readable: ReadableStream<Uint8Array>; writable: WritableStream<string> }, Transport>();
  // @ts-expect-error: one direction only
  fits<{ readable: ReadableStream<Uint8Array> }, Transport>();
  // @ts-expect-error: close() is missing
  fits<Pick<Deno.TcpConn, "read" | "write">, Transport>();
  // @ts-expect-error: a session carries streams, not bytes
  fits<Session, Transport>();
  // @ts-expect-error: a socket that sends whole messages
  fits<Deno.DatagramConn, Transport>();
  // @ts-expect-error: a WebSocketStream before it is open
  fits<WebSocketStream, Transport>();
});

Deno.test("Deno's listeners are assignable to Listener, its connections and Stream to join()'s parameters, its addresses to Address", () => {
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

Deno.test("Session has the types of its interfaces, and yields Streams", () => {
  fits<Session, AsyncDisposable & AsyncIterable<Stream>>();
  fits<Session["incoming"], Receiver<Stream>>();
  fits<Receiver<Stream>, Session["incoming"]>();
  fits<Session["version"], 1 | 2 | undefined>();
  fits<Awaited<ReturnType<Session["openStream"]>>, Stream>();
  fits<Awaited<ReturnType<Session["acceptStream"]>>, Stream>();
  fits<Awaited<ReturnType<Stream["read"]>>, number | null>();
  fits<Stream["readable"], ReadableStream<Uint8Array<ArrayBuffer>>>();
});

Deno.test("options: valid types and undefined compile", () => {
  fits<{ signal: undefined }, NonNullable<Parameters<Session["openStream"]>[0]>>();
  fits<{ [Name in keyof ClientSessionOptions]: undefined }, ClientSessionOptions>();
  fits<{ [Name in keyof ServerSessionOptions]: undefined }, ServerSessionOptions>();
  fits<{ incoming: Sender<Stream> }, SessionOptions>();
  fits<{ version: 1 | 2 }, ClientSessionOptions>();
  fits<{ version: 1 | 2 | "auto" }, ServerSessionOptions>();
});

Deno.test("options: a wrong type does not compile", () => {
  // @ts-expect-error: a number, not text
  fits<{ timeout: string }, SessionOptions>();
  // @ts-expect-error: a number, not a bigint
  fits<{ maxReceiveBuffer: bigint }, SessionOptions>();
  // @ts-expect-error: undefined leaves an option out, null does not
  fits<{ keepAliveInterval: null }, SessionOptions>();
  // @ts-expect-error: a sender, not a receiver
  fits<{ incoming: Receiver<Stream> }, SessionOptions>();
  // @ts-expect-error: a sender of streams
  fits<{ incoming: Sender<Uint8Array> }, SessionOptions>();
  // @ts-expect-error: only versions 1 and 2 exist
  fits<{ version: 3 }, ServerSessionOptions>();
  // @ts-expect-error: a number, not text
  fits<{ version: "2" }, ServerSessionOptions>();
  // @ts-expect-error: only a server can adopt the version of its peer
  fits<{ version: "auto" }, ClientSessionOptions>();
  // @ts-expect-error: `incoming` is not an option of serve()
  const options: ServeOptions = { incoming: undefined };
  assertEquals(Object.keys(options), ["incoming"]);
});

Deno.test('version: "auto" on a client is a type error and a RangeError, and leaves the transport unlocked', () => {
  const transport = pair();
  // @ts-expect-error: only a server can adopt the version of its peer
  const error = assertThrows(() => Session.client(transport, { version: "auto" }), RangeError);
  assertEquals(error.message, 'version must be 1 or 2, received "auto"');
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

Deno.test("options: a value that is not a number is a RangeError with its name, and leaves the transport unlocked", () => {
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

Deno.test("version: a value other than the numbers 1 and 2 is a RangeError, and leaves the transport unlocked", () => {
  const accepted: unknown[] = [];
  for (const value of [0, 3, -1, 1.5, NaN, true, "1", "2", "Auto", "", {}, [2], 2n]) {
    const options = { version: value } as ClientSessionOptions;
    for (const [start, expected] of [[Session.client, "1 or 2"], [Session.server, '1, 2 or "auto"']] as const) {
      const transport = pair();
      try {
        start(transport, options).abort();
        accepted.push(value);
      } catch (error) {
        assertInstanceOf(error, RangeError);
        assertStringIncludes(error.message, `version must be ${expected}, received `);
        assertEquals([transport.readable.locked, transport.writable.locked], [false, false]);
      }
    }
  }
  assertEquals(accepted, []);
});

Deno.test("options: an incoming that is not a Sender is a TypeError, and leaves the transport unlocked", () => {
  for (const value of [5, "incoming", {}, [], () => {}]) {
    const transport = pair();
    const options = { incoming: value } as unknown as ServerSessionOptions;
    assertThrows(() => Session.server(transport, options), TypeError, "incoming");
    assertEquals([transport.readable.locked, transport.writable.locked], [false, false]);
  }
});

Deno.test("Session.client() and Session.server(): a value that is not a transport is a TypeError that lists the requirements", () => {
  // The pipes of a child process that has none.
  const pipes = { readable: null, writable: null };
  for (const value of [undefined, null, 5, "tcp", {}, [], { read() {} }, { readable: new ReadableStream() }, pipes]) {
    for (const start of [Session.client, Session.server]) {
      assertThrows(
        () => start(value as unknown as Transport),
        TypeError,
        "Cannot use transport: expected read, write and close, or readable and writable streams, or a stream of Node",
      );
    }
  }
});
