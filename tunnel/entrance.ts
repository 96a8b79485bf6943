/**
 * Accepts the clients of a server, at an address and with a certificate that can be replaced.
 *
 * @module
 */

import type { Connection, Listener } from "../mod.ts";
import { format, parseEndpoint } from "./address.ts";
import { isCut } from "./errors.ts";
import { listenAgain } from "./listen.ts";
import type { ServeTunnelOptions } from "./options.ts";
import { overlaps } from "./ports.ts";
import { checkProxies, listenBehindProxies } from "./proxy_listener.ts";
import { type Listening, listenOn, type Socket } from "./socket.ts";
import { listenForCertificates } from "./tls_listener.ts";
import { backoff, sleep } from "./wait.ts";
import { checkWeb, WebListener } from "./web_listener.ts";
import { nameOf, parseWebSocketUrl, withoutScheme } from "./web_socket_address.ts";

// Milliseconds between attempts to listen again. Larger: less load while the address is in use; smaller: a shorter
// outage.
const MAX_PAUSE = 2000;

/** The options that determine how clients are accepted. */
type EntranceOptions = Pick<
  ServeTunnelOptions,
  "listen" | "cert" | "key" | "clientCa" | "acceptProxy" | "backend" | "connectTimeout"
>;

/** An open listener. */
interface Opened {
  listening: Listening;
  /** Accepts its connections, without the headers of proxies, after the handshake of TLS, and as WebSockets. */
  listener: Listener<Connection>;
  /** Settles when no handshake is in progress, after `close` of the listener. */
  ended: Promise<unknown>;
}

function normalize(listen: string): string {
  return format(parseEndpoint("listen", withoutScheme("listen", listen), 0));
}

/** Lets connections that are cut before their first byte end without an error: health checks and port scans. */
function quietly(listener: Listener<Socket>): Listener<Socket> {
  return { accept: async () => untilFirstByte(await listener.accept()), close: () => listener.close() };
}

function untilFirstByte(socket: Socket): Socket {
  const { read } = socket;
  // A property of this socket: the session must still see a socket of Deno.
  socket.read = async (p) => {
    try {
      const count = await read.call(socket, p);
      socket.read = read;
      return count;
    } catch (error) {
      if (isCut(error)) return null;
      throw error;
    }
  };
  return socket;
}

/** @param cutting Aborts when requests to the backend must end. */
function open(
  at: string,
  options: EntranceOptions,
  report: (error: unknown) => void,
  cutting: AbortSignal,
): Opened {
  const { cert, key, clientCa } = options;
  const isProxy = checkProxies(options);
  const web = checkWeb(options);
  const isCertified = cert !== undefined && clientCa !== undefined;
  const tls = cert === undefined || isCertified ? undefined : { cert, key: key! };
  const listening = listenOn(withoutScheme("listen", at), tls);
  // A header of a proxy cannot be combined with TLS.
  const prepared = isCertified
    ? listenForCertificates(listening, { cert, key: key!, clientCa }, report)
    : isProxy && listenBehindProxies(listening, isProxy, report);
  const accepting = quietly(prepared ?? listening);
  const listener = web === undefined ? undefined : new WebListener(accepting, web, report, cutting);
  return {
    listening,
    listener: listener ?? accepting,
    ended: Promise.all([prepared?.ended, listener?.ended]),
  };
}

/** Throws a `RangeError` unless the certificate and the key can be used. */
function checkCertificate({ cert, key }: EntranceOptions): void {
  if (cert === undefined) return;
  try {
    listenOn("127.0.0.1:0", { cert, key: key! }).close();
  } catch (error) {
    // A process that may listen at some addresses only finds a mistake when it listens.
    if (error instanceof RangeError) throw error;
  }
}

/** A listener of clients, whose address, certificate and proxies can be replaced. */
export class Entrance implements Listener<Connection> {
  readonly #report: (error: unknown) => void;
  #options: EntranceOptions;
  #addr: string;
  /** `undefined` while its address is being listened on again. */
  #opened: Opened | undefined;
  /** The current listener, once it listens. */
  #listener: Promise<Listener<Connection>>;
  /** Aborts when the current listener is replaced or closed. */
  #replaced = new AbortController();
  /** Aborts on `close`. */
  readonly #closing = new AbortController();
  /** Fulfils when no handshake is in progress. */
  #ended: Promise<unknown> = Promise.resolve();

  /**
   * Starts to listen.
   *
   * @param report Called with each error of a connection.
   */
  constructor(options: EntranceOptions, report: (error: unknown) => void) {
    this.#report = report;
    this.#options = options;
    this.#opened = open(options.listen, options, report, this.#closing.signal);
    this.#addr = this.#opened.listening.addr;
    this.#listener = Promise.resolve(this.#opened.listener);
  }

  /** The address with its port, without a path. */
  get addr(): string {
    const web = parseWebSocketUrl("listen", this.#options.listen, 0);
    return web === undefined ? this.#addr : nameOf({ ...web, endpoint: parseEndpoint("listen", this.#addr, 0) });
  }

  /** Fulfils after `close`, when no handshake is in progress and no request is being forwarded. */
  get ended(): Promise<unknown> {
    return this.#ended;
  }

  async accept(): Promise<Connection> {
    for (;;) {
      const listener = this.#listener;
      try {
        return await (await listener).accept();
      } catch (error) {
        // A replaced listener has ended.
        if (listener === this.#listener) throw error;
      }
    }
  }

  /** Stops listening. */
  close(): void {
    this.#replaced.abort();
    this.#closing.abort();
    this.#closeOpened();
  }

  /**
   * Accepts new connections with other options; accepted ones stay. A new address is listened on before the old one is
   * closed. At the same address connections are refused for the moment between the two listeners.
   *
   * @throws {RangeError} The options are malformed.
   * @throws {Error} The new address cannot be listened on. The old one is still listened on.
   */
  async replace(options: EntranceOptions): Promise<void> {
    const { listen, cert, key, clientCa, acceptProxy = [] } = options;
    const old = this.#options;
    const isSame = normalize(listen) === normalize(old.listen);
    const hasSameProxies = acceptProxy.join() === (old.acceptProxy ?? []).join();
    const web = checkWeb(options);
    const isWeb = web !== undefined;
    const hasSameTls = cert === old.cert && key === old.key && clientCa === old.clientCa;
    if (isSame && hasSameTls && hasSameProxies && isWeb === (checkWeb(old) !== undefined)) {
      this.#options = options;
      // A change of scheme is one of the certificate, too.
      const listener = this.#opened?.listener;
      if (isWeb && listener instanceof WebListener) listener.configure(web);
      return;
    }
    if (isSame || overlaps(this.#addr, normalize(listen))) {
      checkCertificate(options);
      const { promise: tried, resolve } = Promise.withResolvers<void>();
      const closed = this.#closeOpened();
      // Before the address is free: a later attempt uses the options of a later call.
      this.#options = options;
      this.#use(this.#listenAgain(isSame ? this.#addr : listen, closed, this.#renew(), resolve));
      await tried;
    } else {
      const opened = open(listen, options, this.#report, this.#closing.signal);
      this.#closeOpened();
      this.#renew();
      this.#opened = opened;
      this.#addr = opened.listening.addr;
      this.#use(Promise.resolve(opened.listener));
      this.#options = options;
    }
  }

  #use(listener: Promise<Listener<Connection>>): void {
    this.#listener = listener;
    listener.catch(() => {});
  }

  /** Returns a signal for the next listener. */
  #renew(): AbortSignal {
    this.#replaced.abort();
    this.#replaced = new AbortController();
    return this.#replaced.signal;
  }

  /** Closes the current listener; the result fulfils when its address is free. */
  async #closeOpened(): Promise<void> {
    const opened = this.#opened;
    this.#opened = undefined;
    if (opened === undefined) return;
    const { listening, listener, ended } = opened;
    listener.close();
    listening.close();
    this.#ended = Promise.all([this.#ended, ended]);
    await listening.closed;
  }

  /** Listens at an address that was just closed, until it succeeds; `tried` is called when it has or was reported. */
  async #listenAgain(
    at: string,
    closed: Promise<void>,
    signal: AbortSignal,
    tried: () => void,
  ): Promise<Listener<Connection>> {
    await closed;
    for (const delays = backoff(MAX_PAUSE); !signal.aborted;) {
      try {
        return await listenAgain(() => {
          const opened = open(at, this.#options, this.#report, this.#closing.signal);
          this.#opened = opened;
          this.#addr = opened.listening.addr;
          return opened.listener;
        }, signal);
      } catch (error) {
        if (!signal.aborted) this.#report(error);
      } finally {
        tried();
      }
      await sleep(delays.next().value, signal);
    }
    tried();
    throw new Deno.errors.BadResource("Listener has been closed");
  }
}
