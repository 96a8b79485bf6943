/**
 * Many independent streams over one connection, in the protocol smux: versions 1 and 2, as Go's `xtaci/smux` speaks it.
 *
 * {@linkcode serve} answers streams, {@linkcode Session} opens and accepts them over any transport, {@linkcode Stream}
 * goes wherever a `Deno.Conn` goes, and {@linkcode join} ties two connections together.
 *
 * ```ts
 * import { serve, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const listener = Deno.listen({ port: 0 });
 * const server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
 *
 * const session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * const answers = await Promise.all(["one", "two", "three"].map(async (word) => {
 *   const stream = await session.openStream();
 *   await stream.write(new TextEncoder().encode(word));
 *   await stream.closeWrite();
 *   return await new Response(stream.readable).text();
 * }));
 * assertEquals(answers, ["one", "two", "three"]);
 *
 * await session.close();
 * await server.shutdown();
 * ```
 *
 * The channel that carries everything inside is public too, here and as `@sluice/smux/channel`.
 *
 * @module
 */

export * from "./channel.ts";
export { ProtocolError, type Version } from "./frame.ts";
export {
  connections,
  type ConnectionsOptions,
  type Duplex,
  join,
  type Joined,
  type Listener,
  serve,
  type ServeOptions,
  type Server,
} from "./serve.ts";
export {
  type ClientOptions,
  type ServerOptions,
  Session,
  type SessionCloseOptions,
  type SessionOptions,
  type SessionStats,
} from "./session.ts";
export { SessionClosedError, Stream, StreamClosedError, type StreamOperationOptions } from "./stream.ts";
export type { Address, Connection, Transport } from "./transport.ts";
