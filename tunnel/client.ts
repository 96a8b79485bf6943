/**
 * Opens the end of a tunnel that connects to a server.
 *
 * @module
 */

import { Session, SessionClosedError, type Stream } from "../mod.ts";
import { Activity } from "./activity.ts";
import { checkExposed, checkTls, format, parseEndpoint, parseForward } from "./address.ts";
import { wrapError } from "./errors.ts";
import { forwardAll, forwardStream } from "./forward.ts";
import { checkSecret, request, serveRequest } from "./handshake.ts";
import { type OpenTunnelOptions, type TunnelClient, TunnelRefusedError } from "./options.ts";
import { dial, listenOn, type Socket } from "./socket.ts";
import { speakSocks } from "./socks5.ts";
import { backoff, clampTimeout, MAX_BACKOFF, onAbort, sleep } from "./wait.ts";

// As `serve` has it by default.
const STALLED_STREAM_TIMEOUT = 5000;

/**
 * Starts the client's end of a tunnel: it connects to the server, then listens. Each direction's end is forwarded too, and
 * a connection whose target refuses is closed at once. When the connection to the server is lost, what it carried is
 * closed, and so is what comes until there is a new one.
 *
 * @param options Where the server is, what to forward, and who is told of what.
 * @returns The tunnel, when it is connected and everything listens.
 * @throws {RangeError} An option is not what it must be, or would open the tunnel to strangers.
 * @throws {TunnelRefusedError} The server does not listen for `reverse`.
 * @throws {Error} It cannot listen there, or the server cannot be reached.
 *
 * @example What only this machine can reach is reached through the server
 * ```ts
 * import { openTunnel, serveTunnel } from "@sluice/smux/tunnel";
 * import { assertEquals } from "@std/assert";
 *
 * await using server = serveTunnel({ listen: "127.0.0.1:0", allowListen: ["127.0.0.1:*"] });
 * const web = Deno.serve({ hostname: "127.0.0.1", port: 0, onListen() {} }, () => new Response("from behind"));
 * await using client = await openTunnel({ connect: server.serverAddr, reverse: [`0=${web.addr.port}`] });
 *
 * const answer = await fetch(`http://${client.listenAddrs[0]}/`, { headers: { connection: "close" } });
 * assertEquals(await answer.text(), "from behind");
 * await web.shutdown();
 * ```
 */
export async function openTunnel(options: OpenTunnelOptions): Promise<TunnelClient> {
  const { connect: server, secret, ca, tls = ca !== undefined, version, signal, reconnect = true } = options;
  const { stalledStreamTimeout = STALLED_STREAM_TIMEOUT } = options;
  const where = format(parseEndpoint("connect", server, 1));
  checkSecret(secret);
  if (tls) checkTls("connect", server);
  if (ca !== undefined && !ca.includes("-----BEGIN CERTIFICATE-----")) {
    throw new RangeError("ca must be certificates in PEM, which begin with -----BEGIN CERTIFICATE-----");
  }
  if (secret !== undefined && !tls) checkExposed("connect", server, options.insecure);
  const local = [
    ...(options.forward ?? []).map((text) => ({ ...parseForward("forward", text), isSocks: false })),
    ...(options.socks ?? []).map((listen) => ({ listen, target: undefined, isSocks: true })),
  ];
  for (const { listen, isSocks } of local) checkExposed(isSocks ? "socks" : "forward", listen, options.insecure);
  const reverse = (options.reverse ?? []).map((text) => parseForward("reverse", text));
  const targets = new Map(reverse.map(({ listen, target }) => [listen, target]));
  if (targets.size < reverse.length) throw new RangeError("Two of reverse listen at the same place");
  if (reverse.some(({ target }) => target === undefined)) throw new RangeError("reverse must be LISTEN=TARGET");

  const activity = new Activity(options);
  const stopping = new AbortController();
  const cut = new AbortController();
  const working = new Set<Promise<unknown>>();
  const bound = new Set<Stream>();
  const listenAddrs: string[] = [];
  let session: Session | undefined;

  function work(task: Promise<unknown>): void {
    working.add(task);
    task.catch(activity.report).finally(() => working.delete(task));
  }

  async function start(): Promise<Session> {
    const socket = await dial(server, stopping.signal, tls ? { caCerts: ca === undefined ? [] : [ca] } : undefined);
    const started = Session.client(socket, { version, stalledStreamTimeout });
    activity.add(started);
    // A server has nothing else to open a stream for: each is refused.
    if (reverse.length === 0) started.incoming.close();
    else work(accept(started));
    return started;
  }

  /** Connects what comes by way of the server's listening. */
  async function accept(on: Session): Promise<void> {
    const answer = async (stream: Stream) => {
      const { at, opened } = await serveRequest(stream, "the server", async ({ method, at }) => {
        const to = method === "CONNECT" ? targets.get(at) : undefined;
        if (to === undefined) throw new TunnelRefusedError(403, "not asked for");
        return await dial(to, stream);
      });
      await forwardStream(activity, stream, opened, `to ${targets.get(at)}`);
    };
    try {
      for await (const stream of on) work(answer(stream).finally(() => stream.close()));
    } catch {
      // The end of the session is told elsewhere.
    }
  }

  async function bind(on: Session, n: number): Promise<Stream> {
    const { stream, addr } = await request(on, "BIND", reverse[n]!.listen, secret);
    listenAddrs[local.length + n] = addr;
    bound.add(stream);
    if (stopping.signal.aborted) stream.close();
    return stream;
  }

  /** Has the server listen as long as the session lives. */
  async function keepBound(on: Session, n: number, stream?: Stream): Promise<void> {
    for (const waits = backoff(); !stopping.signal.aborted;) {
      try {
        stream ??= await bind(on, n);
        // Nothing comes on it but its end.
        await stream.read(new Uint8Array(1));
        throw new Error("the server ended it");
      } catch (error) {
        stream?.close();
        if (stream !== undefined) bound.delete(stream);
        stream = undefined;
        if (stopping.signal.aborted || error instanceof SessionClosedError) return;
        activity.report(wrapError(`The server does not listen on ${reverse[n]!.listen}`, error));
      }
      await sleep(waits.next().value, stopping.signal);
    }
  }

  async function connect(target?: string): Promise<Stream> {
    if (session === undefined) throw new Error(`There is no connection to ${where} now`);
    if (target === undefined) return await session.openStream();
    parseEndpoint("target", target, 1);
    return (await request(session, "CONNECT", target, secret)).stream;
  }

  async function startAgain(waits: ReturnType<typeof backoff>): Promise<Session | undefined> {
    while (!stopping.signal.aborted) {
      await sleep(waits.next().value, stopping.signal);
      try {
        return await start();
      } catch (error) {
        if (!stopping.signal.aborted) activity.report(error);
      }
    }
    return undefined;
  }

  async function run(): Promise<void> {
    let waits = backoff();
    while (session !== undefined) {
      const began = performance.now();
      // It may have been told to end before there was a session.
      if (signal?.aborted) session.abort(signal.reason);
      else if (stopping.signal.aborted) session.close({ drain: true });
      const why = await session.closed.then(() => undefined, (error: unknown) => error);
      session = undefined;
      const ended = performance.now();
      const lost = wrapError(`The connection to ${where} was lost`, why ?? "the server ended it");
      if (stopping.signal.aborted) {
        if (why !== undefined && !signal?.aborted) activity.report(lost);
        return;
      }
      if (!reconnect) throw lost;
      activity.report(lost);
      if (performance.now() - began > MAX_BACKOFF) waits = backoff();
      const again = session = await startAgain(waits);
      if (again === undefined) return;
      activity.emit({ type: "reconnected", serverAddr: where, error: lost, downtime: performance.now() - ended });
      reverse.forEach((_, n) => work(keepBound(again, n)));
    }
  }

  function shutdown({ timeout = Infinity }: { timeout?: number | undefined } = {}): Promise<void> {
    stopping.abort();
    for (const stream of bound) stream.close();
    session?.close({ drain: true, timeout: clampTimeout(timeout) });
    activity.cutAfter(clampTimeout(timeout), finished);
    return finished.catch(() => {});
  }

  const off = onAbort(signal, (reason) => {
    stopping.abort(reason);
    session?.abort(reason);
    activity.cut();
  });
  const end = async () => {
    stopping.abort();
    cut.abort();
    off();
    while (working.size > 0) await Promise.allSettled(working);
  };
  try {
    session = await start();
    for (const { listen, target, isSocks } of local) {
      const listening = listenOn(listen);
      listenAddrs.push(listening.addr);
      const open = (from: Socket) => isSocks ? speakSocks(from, connect) : connect(target);
      work(forwardAll(activity, listening, open, stopping.signal, cut.signal).then(({ forwarded }) => forwarded));
    }
    const started = session;
    const streams = [];
    for (const n of reverse.keys()) streams.push(await bind(started, n));
    streams.forEach((stream, n) => work(keepBound(started, n, stream)));
  } catch (error) {
    session?.abort(error);
    await end();
    throw error;
  }
  const finished = run().finally(end);
  finished.catch(() => {});
  return {
    serverAddr: where,
    listenAddrs,
    finished,
    connect,
    shutdown,
    stats: () => activity.stats(),
    [Symbol.asyncDispose]: shutdown,
  };
}
