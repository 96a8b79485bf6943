/**
 * Serves the server's end of a tunnel.
 *
 * @module
 */

import { serve, type Server, type Session, type Stream } from "../mod.ts";
import { Activity } from "./activity.ts";
import { checkExposed, checkTls, formatPeer, parseEndpoint, parseRule, UNNAMED } from "./address.ts";
import { toError, wrapError } from "./errors.ts";
import { forwardAll, forwardStream } from "./forward.ts";
import { authorize, checkSecret, request, type Rules, serveRequest } from "./handshake.ts";
import type { ServeTunnelOptions, Tunnel, TunnelStats } from "./options.ts";
import { checkRuntime, dial, Listening, listenOn, listenToForward, resetting, type Socket } from "./socket.ts";
import { clampTimeout, onAbort } from "./wait.ts";

/**
 * Starts the server's end of a tunnel, for any number of clients. When the server cannot connect to a target, the
 * stream ends at once and `onError` is called with the error.
 *
 * @param options The address to listen on, what clients may request, and callbacks for errors and events.
 * @returns The tunnel, which listens already.
 * @throws {RangeError} An option is malformed, or would open the tunnel to other machines.
 * @throws {TypeError} The runtime is not Deno.
 * @throws {Error} The server cannot listen on the address.
 *
 * @example One target, for any smux client
 * ```ts
 * import { serveTunnel } from "@sluice/smux/tunnel";
 * import { Session } from "@sluice/smux";
 * import { assertStringIncludes } from "@std/assert";
 * import { toText } from "@std/streams";
 *
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("hello"));
 * const server = serveTunnel({ listen: "127.0.0.1:0", target: `127.0.0.1:${web.addr.port}` });
 *
 * // A session without a tunnel is enough for a client.
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
  checkRuntime();
  const server = new TunnelServer(options);
  const shutdown: Tunnel["shutdown"] = ({ timeout } = {}) => server.shutdown(timeout);
  return {
    serverAddr: server.addr,
    listenAddrs: [],
    finished: server.finished,
    shutdown,
    stats: () => server.stats(),
    [Symbol.asyncDispose]: shutdown,
  };
}

function checkOptions(options: ServeTunnelOptions): Rules {
  const { listen, target, secret, cert, key, allow = [], allowListen = [] } = options;
  const rules: Rules = {
    CONNECT: allow.map((entry) => parseRule("allow", entry)),
    BIND: allowListen.map((entry) => parseRule("allowListen", entry)),
  };
  if ((cert === undefined) !== (key === undefined)) {
    throw new RangeError(`cert and key must be set together, received only ${cert === undefined ? "key" : "cert"}`);
  }
  if (cert !== undefined) checkTls("listen", listen);
  checkSecret(secret);
  if (target !== undefined) {
    parseEndpoint("target", target, 1);
    if (secret !== undefined || allow.length > 0 || allowListen.length > 0) {
      throw new RangeError("target cannot be combined with secret, allow or allowListen");
    }
  }
  if (cert === undefined || secret === undefined) checkExposed("listen", listen, options.insecure);
  return rules;
}

/** The server's end of a tunnel. */
class TunnelServer {
  readonly addr: string;
  readonly finished: Promise<void>;
  readonly #target: string | undefined;
  readonly #secret: string | undefined;
  readonly #rules: Rules;
  readonly #activity: Activity;
  readonly #server: Server;
  /** Aborts when nothing new may begin. */
  readonly #stopping = new AbortController();

  constructor(options: ServeTunnelOptions) {
    const { listen, cert, key, stalledStreamTimeout } = options;
    this.#rules = checkOptions(options);
    this.#target = options.target;
    this.#secret = options.secret;
    this.#activity = new Activity(options);
    const listening = listenOn(listen, cert === undefined ? undefined : { cert, key: key! });
    this.addr = listening.addr;
    const cut = new AbortController();
    this.#server = serve(listening, (stream, session) => this.#handle(stream, session), {
      signal: cut.signal,
      stalledStreamTimeout,
      onFrame: this.#activity.frame,
      onError: (error) => this.#activity.report(wrapError("A client's connection failed", error)),
      onSession: (session) => {
        this.#activity.add(session);
        this.#activity.emit({ type: "connected", clientAddr: formatPeer(session.remoteAddr) });
      },
    });
    const off = onAbort(options.signal, (reason) => {
      this.#stopping.abort(reason);
      cut.abort(reason);
      this.#activity.cut();
    });
    this.finished = this.#server.finished.finally(off);
  }

  stats(): TunnelStats {
    return this.#activity.stats();
  }

  async shutdown(timeout = Infinity): Promise<void> {
    this.#stopping.abort();
    this.#activity.cutAfter(clampTimeout(timeout), this.finished);
    await this.#server.shutdown({ timeout: clampTimeout(timeout) });
    await this.finished;
  }

  async #handle(stream: Stream, session: Session): Promise<void> {
    try {
      if (this.#target !== undefined) await this.#forward(stream, await dial(this.#target, stream), this.#target);
      else await this.#answer(stream, session);
    } catch (error) {
      // Without a response to a request, a target that refuses would look like one with an empty answer.
      if (this.#target !== undefined) stream.abort(error);
      this.#activity.report(error);
    }
  }

  async #forward(stream: Stream, socket: Socket, target: string): Promise<void> {
    await forwardStream(this.#activity, stream, socket, `to ${target}`);
  }

  /** Serves the request that a stream begins with. */
  async #answer(stream: Stream, session: Session): Promise<void> {
    const peer = formatPeer(session.remoteAddr) ?? UNNAMED;
    const { address, opened } = await serveRequest(stream, peer, async (request) => {
      await authorize(request, this.#rules, this.#secret, this.#stopping.signal);
      return request.method === "BIND" ? await listenToForward(request.address) : await dial(request.address, stream);
    });
    if (opened instanceof Listening) await this.#listenFor(session, stream, address, opened);
    else await this.#forward(stream, opened, address);
  }

  /** Accepts connections for a client, until the stream of its request ends. */
  async #listenFor(session: Session, stream: Stream, address: string, listening: Listening): Promise<void> {
    const ended = new AbortController();
    const off = onAbort(this.#stopping.signal, () => ended.abort());
    const where = { listenAddr: listening.addr, clientAddr: formatPeer(session.remoteAddr) };
    this.#activity.emit({ type: "listening", ...where });
    const open = async (from: Socket) => (await request(session, "CONNECT", address).catch(resetting(from))).stream;
    const listened = forwardAll(this.#activity, listening, open, ended.signal);
    // The client sends nothing more on the stream: the read waits for its end.
    const reading = stream.read(new Uint8Array(1)).then(() => undefined, toError);
    const error = await Promise.race([reading, listened.then(() => undefined)]);
    ended.abort();
    off();
    stream.close();
    const { forwarded } = await listened;
    this.#activity.emit({ type: "stopped", ...where, error });
    await forwarded;
  }
}
