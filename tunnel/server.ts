/**
 * Serves the end of a tunnel that clients connect to.
 *
 * @module
 */

import { serve, type Session, type Stream } from "../mod.ts";
import { Activity } from "./activity.ts";
import { checkExposed, checkTls, formatPeer, parseEndpoint, parseRule, type Rule, UNNAMED } from "./address.ts";
import { toError, wrapError } from "./errors.ts";
import { forwardAll, forwardStream } from "./forward.ts";
import { checkSecret, request, serveRequest, timingSafeEqual } from "./handshake.ts";
import { type ServeTunnelOptions, type Tunnel, TunnelRefusedError } from "./options.ts";
import { dial, Listening, listenOn } from "./socket.ts";
import { clampTimeout, onAbort, sleep } from "./wait.ts";

// What it costs to try a secret, in milliseconds.
const WRONG_SECRET_DELAY = 1000;

/**
 * Starts the server's end of a tunnel: any number of clients may connect. When a target cannot be reached the stream ends
 * at once, and `onError` is told.
 *
 * @param options Where to listen, where to connect to, who may, and who is told of what.
 * @returns The tunnel, at once.
 * @throws {RangeError} An option is not what it must be, or would open the tunnel to strangers.
 * @throws {Error} It cannot listen there.
 *
 * @example One target, for any client of smux
 * ```ts
 * import { serveTunnel } from "@sluice/smux/tunnel";
 * import { Session } from "@sluice/smux";
 * import { assertStringIncludes } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: "127.0.0.1:0", target: `127.0.0.1:${web.addr.port}` });
 *
 * // Any client of smux will do, not only a tunnel's.
 * const { hostname, port } = new URL(`http://${server.serverAddr}`);
 * const session = Session.client(await Deno.connect({ hostname, port: Number(port) }));
 * const stream = await session.openStream();
 * await stream.write(new TextEncoder().encode("GET / HTTP/1.0\r\n\r\n"));
 * assertStringIncludes(await toText(stream.readable), "hello");
 *
 * stream.close();
 * await session.close();
 * await server.shutdown();
 * await web.shutdown();
 * ```
 */
export function serveTunnel(options: ServeTunnelOptions): Tunnel {
  const { listen, target, secret, cert, key, signal } = options;
  const rules: Record<string, Rule[]> = {
    CONNECT: (options.allow ?? []).map((entry) => parseRule("allow", entry)),
    BIND: (options.allowListen ?? []).map((entry) => parseRule("allowListen", entry)),
  };
  if ((cert === undefined) !== (key === undefined)) throw new RangeError("cert and key go together");
  if (cert !== undefined) checkTls("listen", listen);
  checkSecret(secret);
  if (target !== undefined) {
    parseEndpoint("target", target, 1);
    const isIdle = secret !== undefined || Object.values(rules).some(({ length }) => length > 0);
    if (isIdle) {
      throw new RangeError("With a target nobody is asked for anything: leave out secret, allow and allowListen");
    }
  }
  if (cert === undefined || secret === undefined) checkExposed("listen", listen, options.insecure);
  const activity = new Activity(options);
  // The one ends everything at once, the other what is not forwarded yet.
  const cut = new AbortController();
  const stopping = new AbortController();

  async function answer(stream: Stream, session: Session): Promise<void> {
    if (target !== undefined) return await forwardStream(activity, stream, await dial(target, stream), `to ${target}`);
    const { at, opened } = await serveRequest(
      stream,
      formatPeer(session.remoteAddr) ?? UNNAMED,
      async ({ method, at, proof }) => {
        if (secret !== undefined && !await timingSafeEqual(proof, `Bearer ${secret}`)) {
          await sleep(WRONG_SECRET_DELAY, stopping.signal);
          throw new TunnelRefusedError(407, "wrong secret");
        }
        if (rules[method] === undefined) throw new TunnelRefusedError(405, "neither CONNECT nor BIND");
        const endpoint = parseEndpoint(method, at, method === "BIND" ? 0 : 1);
        if (!rules[method].some((rule) => rule(endpoint))) throw new TunnelRefusedError(403, "not allowed");
        return method === "BIND" ? listenOn(at) : await dial(at, stream);
      },
    );
    if (opened instanceof Listening) await listenFor(session, stream, at, opened);
    else await forwardStream(activity, stream, opened, `to ${at}`);
  }

  /** Accepts connections for a client, until it ends the stream that asked for that. */
  async function listenFor(session: Session, stream: Stream, asked: string, listening: Listening): Promise<void> {
    const ended = new AbortController();
    const off = onAbort(stopping.signal, () => ended.abort());
    const where = { listenAddr: listening.addr, clientAddr: formatPeer(session.remoteAddr) };
    activity.emit({ type: "listening", ...where });
    const open = async () => (await request(session, "CONNECT", asked)).stream;
    const listened = forwardAll(activity, listening, open, ended.signal);
    // Nothing comes on it but its end.
    const reading = stream.read(new Uint8Array(1)).then(() => undefined, toError);
    const error = await Promise.race([reading, listened.then(() => undefined)]);
    ended.abort();
    off();
    stream.close();
    const { forwarded } = await listened;
    activity.emit({ type: "stopped", ...where, error });
    await forwarded;
  }

  const listening = listenOn(listen, cert === undefined ? undefined : { cert, key: key! });
  const server = serve(listening, (stream, session) => answer(stream, session).catch(activity.report), {
    signal: cut.signal,
    stalledStreamTimeout: options.stalledStreamTimeout,
    onError: (error) => activity.report(wrapError("A client's connection failed", error)),
    onSession: (session) => {
      activity.add(session);
      activity.emit({ type: "connected", clientAddr: formatPeer(session.remoteAddr) });
    },
  });
  const off = onAbort(signal, (reason) => {
    stopping.abort(reason);
    cut.abort(reason);
    activity.cut();
  });
  const finished = server.finished.finally(off);
  async function shutdown({ timeout = Infinity }: { timeout?: number | undefined } = {}): Promise<void> {
    stopping.abort();
    activity.cutAfter(clampTimeout(timeout), finished);
    await server.shutdown({ timeout: clampTimeout(timeout) });
    await finished;
  }
  return {
    serverAddr: listening.addr,
    listenAddrs: [],
    finished,
    shutdown,
    stats: () => activity.stats(),
    [Symbol.asyncDispose]: shutdown,
  };
}
