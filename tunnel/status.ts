/**
 * Serves the state of one end of a tunnel over HTTP: figures, health, and metrics for Prometheus.
 *
 * @module
 */

import type { Activity } from "./activity.ts";
import { checkExposed, format, isLoopback, parseEndpoint } from "./address.ts";
import { wrapError } from "./errors.ts";
import { formatMetrics, type Metric, METRICS_TYPE } from "./metrics.ts";
import type { TunnelServerState } from "./options.ts";
import { VERSION } from "./version.ts";

/** An address that an end listens on. */
export interface StatusListener {
  address: string;
  /** Where its connections lead; `undefined` if only the peer knows it. */
  to: string | undefined;
}

/** What only the end itself knows. */
export interface StatusSource {
  end: "client" | "server";
  /** Whether a client is connected, or a server listens. */
  isReady(): boolean;
  listeners(): StatusListener[];
  /** The servers of a client. */
  servers?(): TunnelServerState[];
}

/** Rejects an address for the status that other machines can reach, unless `insecure` allows it. */
export function checkStatus(listen: string | undefined, insecure: boolean | undefined): void {
  if (listen !== undefined) checkExposed("status", listen, insecure);
}

/** Serves the state of one end of a tunnel. */
export class StatusServer {
  readonly addr: string;
  readonly #activity: Activity;
  readonly #source: StatusSource;
  /** Milliseconds since 1970. */
  readonly #began = Date.now();
  readonly #stopping = new AbortController();
  readonly #server: Deno.HttpServer<Deno.NetAddr | Deno.UnixAddr>;
  /** Whether requests must name this machine. */
  readonly #isLocal: boolean;

  /** Starts to listen. */
  constructor(listen: string, activity: Activity, source: StatusSource) {
    this.#activity = activity;
    this.#source = source;
    const { path, hostname, port } = parseEndpoint("status", listen, 0);
    this.#isLocal = hostname !== undefined && isLoopback(hostname);
    const options = { signal: this.#stopping.signal, onListen() {}, onError: (error: unknown) => this.#fail(error) };
    const handler = (request: Request) => this.#answer(request);
    try {
      this.#server = path === undefined
        ? Deno.serve({ ...options, hostname, port }, handler)
        : Deno.serve({ ...options, path }, handler);
    } catch (error) {
      throw wrapError(`Cannot listen on ${listen}`, error);
    }
    this.addr = path === undefined ? format(this.#server.addr as Deno.NetAddr) : listen;
  }

  /** Stops listening, and closes all connections. */
  async close(): Promise<void> {
    this.#stopping.abort();
    await this.#server.finished;
  }

  #fail(error: unknown): Response {
    this.#activity.report(wrapError("Cannot report the status", error));
    return respond(500, "internal error\n");
  }

  #answer(request: Request): Response {
    const { hostname, pathname } = new URL(request.url);
    // A page of another site can make its own name resolve to this machine, and would read the answer as its own.
    if (this.#isLocal && !/^(localhost|[\d.]+|\[.+\])$/.test(hostname)) {
      return respond(403, "expected an IP address or localhost as the host\n");
    }
    const page = this.#page(pathname);
    if (page === undefined) return respond(404, "expected /metrics, /status or /healthz\n");
    if (request.method === "GET") return page;
    if (request.method !== "HEAD") return respond(405, "expected GET or HEAD\n", { allow: "GET, HEAD" });
    return new Response(null, { status: page.status, headers: page.headers });
  }

  #page(path: string): Response | undefined {
    const isReady = this.#source.isReady();
    switch (path) {
      case "/metrics":
        return respond(200, formatMetrics(this.#metrics(isReady)), { "content-type": METRICS_TYPE });
      case "/status":
        return respond(200, `${JSON.stringify(this.#status(isReady), null, 2)}\n`, {
          "content-type": "application/json",
        });
      case "/healthz":
        if (isReady) return respond(200, "ok\n");
        return respond(503, this.#source.end === "client" ? "not connected\n" : "not listening\n");
      default:
        return undefined;
    }
  }

  #status(isReady: boolean): unknown {
    const { connections, reconnects, streams, open, sent, received, dropped, refused } = this.#activity.stats();
    return {
      version: VERSION,
      end: this.#source.end,
      ready: isReady,
      uptime: Math.round((Date.now() - this.#began) / 1000),
      connections,
      reconnects,
      streams,
      open,
      sent,
      received,
      dropped,
      refused,
      servers: this.#source.servers?.(),
      listeners: this.#source.listeners(),
      sessions: this.#activity.sessions().map(({ began, ...session }) => ({
        ...session,
        since: new Date(began).toISOString(),
      })),
      forwards: this.#activity.sums(),
    };
  }

  #metrics(isReady: boolean): Metric[] {
    const stats = this.#activity.stats();
    const sums = this.#activity.sums();
    const gauge = (name: string, help: string, value: number): Metric => ({
      name: `sluice_${name}`,
      help,
      type: "gauge",
      samples: [{ value }],
    });
    const counter = (name: string, help: string, value: number): Metric => ({
      ...gauge(name, help, value),
      type: "counter",
    });
    const each = (name: string, help: string, key: "streams" | "open" | "failed" | "sent" | "received"): Metric => ({
      ...gauge(name, help, 0),
      type: key === "open" ? "gauge" : "counter",
      samples: sums.map(({ kind, forward, user, [key]: value }) => ({ labels: { kind, forward, user }, value })),
    });
    return [
      {
        ...gauge("info", "Version and end of the tunnel.", 1),
        samples: [{ labels: { version: VERSION, end: this.#source.end }, value: 1 }],
      },
      gauge("start_time_seconds", "Start of the tunnel since 1970, in seconds.", this.#began / 1000),
      gauge("ready", "Whether a client is connected, or a server listens.", Number(isReady)),
      {
        ...gauge("server_up", "Whether a client is connected to the server.", 0),
        samples: (this.#source.servers?.() ?? []).map(({ addr, isUp }) => ({
          labels: { server: addr },
          value: Number(isUp),
        })),
      },
      gauge("open_sessions", "Connections between client and server that are open.", this.#activity.sessions().length),
      counter("sessions_total", "Connections between client and server.", stats.connections),
      counter("reconnects_total", "Connections of a client after its first.", stats.reconnects),
      counter("sent_bytes_total", "Bytes sent to peers, headers included.", stats.sent),
      counter("received_bytes_total", "Bytes received from peers, headers included.", stats.received),
      counter("datagrams_dropped_total", "Datagrams of UDP that this end has dropped.", stats.dropped),
      {
        ...counter("refused_total", "Requests refused by this end or its peer, by HTTP status.", 0),
        samples: Object.entries(stats.refused).map(([status, value]) => ({ labels: { status }, value })),
      },
      each("open_streams", "Forwarded connections that are open.", "open"),
      each("streams_total", "Forwarded connections.", "streams"),
      each("streams_failed_total", "Forwarded connections that have ended with an error.", "failed"),
      each("stream_sent_bytes_total", "Bytes of forwarded connections sent to peers.", "sent"),
      each("stream_received_bytes_total", "Bytes of forwarded connections received from peers.", "received"),
    ];
  }
}

function respond(status: number, body: string, headers: Record<string, string> = {}): Response {
  const common = { "content-type": "text/plain; charset=utf-8", "cache-control": "no-store" };
  return new Response(body, { status, headers: { ...common, ...headers } });
}
