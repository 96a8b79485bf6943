/**
 * Many independent streams over one connection: a TCP or TLS socket, a WebSocket, a child process, any pair of web
 * streams. The protocol is smux, versions 1 and 2, as Go's `xtaci/smux` speaks it.
 *
 * ```ts
 * import { serve, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * // One end answers every stream that anybody opens.
 * const listener = Deno.listen({ port: 0 });
 * const server = serve(listener, (stream) => stream.readable.pipeTo(stream.writable));
 *
 * // The other end has three conversations at once, over one connection.
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
 * What is in the box:
 *
 * - {@linkcode serve} accepts connections and calls a handler for each stream. {@linkcode connections} is its accept
 *   loop alone, one that a failing peer does not end.
 * - {@linkcode Session} opens and accepts streams, from either end, over any {@linkcode Transport}. It keeps itself
 *   alive and within limits: {@linkcode SessionOptions} names them, {@linkcode SessionStats} shows how it fares.
 * - {@linkcode Stream} goes wherever a `Deno.Conn` goes: it has `read` and `write`, `readable` and `writable`, a
 *   `closeWrite` for one direction, and `using` closes it.
 * - {@linkcode join} ties two connections together, each direction's end included: a proxy in one call.
 * - {@linkcode Channel}, {@linkcode bounded}, {@linkcode unbounded} and {@linkcode select} are what all of it is made of,
 *   and a module of their own: `@sluice/smux/channel`.
 * - `@sluice/smux/tunnel` forwards ports over one connection, as `ssh -L`, `-R` and `-D` do: a command, and functions.
 * - {@linkcode ProtocolError}, {@linkcode SessionClosedError}, {@linkcode StreamClosedError} and
 *   {@linkcode ChannelClosedError} tell what went wrong, and where.
 *
 * smux does not encrypt: where others can listen in, run it over TLS. The modules import nothing from outside.
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
export { SessionClosedError, StreamClosedError } from "./errors.ts";
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
