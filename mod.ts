/**
 * Carries many independent streams over one connection: a TCP or TLS socket, a WebSocket, a child process, or any pair
 * of web streams. The protocol is smux, versions 1 and 2, compatible with Go's `xtaci/smux`.
 *
 * ```ts
 * import { serve, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * // The server echoes every stream.
 * const listener = Deno.listen({ port: 0 });
 * const server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
 *
 * // The client has three requests in flight at once, over one connection.
 * const session = Session.client(await Deno.connect({ port: listener.addr.port }));
 * const answers = await Promise.all(["one", "two", "three"].map(async (word) => {
 *   const stream = await session.openStream();
 *   await stream.write(new TextEncoder().encode(word));
 *   await stream.closeWrite();
 *   return await toText(stream.readable);
 * }));
 * assertEquals(answers, ["one", "two", "three"]);
 *
 * await session.close();
 * await server.shutdown();
 * ```
 *
 * Contents:
 *
 * - {@linkcode serve} accepts connections and calls a handler for each stream. {@linkcode connections} is its accept
 *   loop alone; a failing peer does not end it.
 * - {@linkcode Session} opens and accepts streams, from either end, over any {@linkcode Transport}. It sends
 *   keepalives and enforces limits: {@linkcode SessionOptions} lists them, {@linkcode SessionStats} has the counts.
 * - {@linkcode Stream} has the shape of a `Deno.Conn`: `read` and `write`, `readable` and `writable`, `closeWrite` for
 *   one direction; `using` closes it.
 * - {@linkcode join} copies between two connections in both directions, half-close included: a proxy in one call.
 * - {@linkcode Channel}, {@linkcode bounded}, {@linkcode unbounded} and {@linkcode select} pass values between tasks.
 *   The package uses them itself; they are also exported alone, as `@sluice/smux/channel`.
 * - `@sluice/smux/websocket` has WebSockets as transports: for pages, for Deno Deploy, for any server.
 * - `@sluice/smux/resume` has connections that survive the loss of their socket.
 * - `@sluice/smux/tunnel` forwards ports over one connection, as `ssh -L`, `-R` and `-D` do: a command and functions.
 * - {@linkcode ProtocolError}, {@linkcode SessionClosedError}, {@linkcode StreamClosedError},
 *   {@linkcode StreamResetError} and {@linkcode ChannelClosedError} are the errors of this module.
 *
 * smux does not encrypt: use TLS as the transport where the network is not trusted. The modules have no dependencies.
 *
 * @module
 */

export {
  bounded,
  Channel,
  ChannelClosedError,
  ChannelHandle,
  type ChannelOptions,
  type ChannelReceiveOptions,
  type ChannelReceiveResult,
  type ChannelSendOptions,
  type DropOptions,
  Receiver,
  select,
  type SelectCase,
  type SelectCases,
  type SelectOptions,
  type SelectResult,
  Sender,
  trySelect,
  unbounded,
  type WaitOptions,
  WeakSender,
} from "./channel.ts";
export { SessionClosedError, StreamClosedError, StreamResetError } from "./errors.ts";
export { type CommandName, ProtocolError, type Version } from "./frame.ts";
export type { FrameEvent } from "./_trace.ts";
export type { ClientSessionOptions, ServerSessionOptions, SessionCloseOptions, SessionOptions } from "./options.ts";
export {
  connections,
  type ConnectionsOptions,
  type DuplexConnection,
  join,
  type JoinResult,
  type Listener,
  serve,
  type ServeOptions,
  type Server,
} from "./serve.ts";
export { Session, type SessionStats } from "./session.ts";
export { type AbortOptions, Stream } from "./stream.ts";
export type { Address, Connection, NodeStream, Transport } from "./transport.ts";
