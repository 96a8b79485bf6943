/**
 * Runs the tunnels of a configuration file, and applies its changes.
 *
 * @module
 */

import { parseForward, splitUdp } from "./address.ts";
import { openTunnel } from "./client.ts";
import { type Config, ConfigError, type End, loadConfig, readText } from "./config.ts";
import {
  listeningEntry,
  type LogEntry,
  notReloadedEntry,
  pinEntry,
  reloadedEntry,
  statusEntry,
  stoppedEntry,
} from "./log.ts";
import type { OpenTunnelOptions, Tunnel, TunnelClient, TunnelOptions, TunnelServer, TunnelStats } from "./options.ts";
import { normalize } from "./places.ts";
import { serveTunnel } from "./server.ts";
import { targetsOf } from "./settings.ts";
import { FileWatcher } from "./watch.ts";

/** The callbacks of a tunnel. */
type Reports = Pick<TunnelOptions, "onError" | "onEvent" | "onFrame">;

/** The output of the tunnels of a file. */
export interface Printer {
  /** Prints an event. */
  log(entry: LogEntry): void;
  /** Prints an error. */
  error(error: unknown): void;
  /** Whether the targets of addresses are printed. */
  hasTargets: boolean;
}

/** What the command needs from a tunnel. */
export type Running = Pick<Tunnel, "finished" | "shutdown" | "stats">;

/** A client that is being opened or is open. New options open it again if it is not open yet. */
class Client {
  readonly #reports: Reports;
  readonly #onOpen: () => void;
  readonly #finished = Promise.withResolvers<void>();
  #stop = new AbortController();
  #opening: Promise<void> = Promise.resolve();
  tunnel: TunnelClient | undefined;

  constructor(options: OpenTunnelOptions, reports: Reports, onOpen: () => void) {
    this.#reports = reports;
    this.#onOpen = onOpen;
    this.#opening = this.#open(options);
    this.finished.catch(() => {});
  }

  /** Settles as that of a tunnel; rejects, too, when the client cannot be opened. */
  get finished(): Promise<void> {
    return this.#finished.promise;
  }

  async update(options: OpenTunnelOptions): Promise<void> {
    if (this.tunnel !== undefined) return await this.tunnel.update(options);
    this.#stop.abort();
    // Its addresses are free then.
    await this.#opening;
    this.#stop = new AbortController();
    this.#opening = this.#open(options);
  }

  async shutdown(options: { timeout?: number | undefined }): Promise<void> {
    if (this.tunnel !== undefined) return await this.tunnel.shutdown(options);
    this.#stop.abort();
    await this.#opening;
    this.#finished.resolve();
  }

  async #open(options: OpenTunnelOptions): Promise<void> {
    const { signal } = this.#stop;
    try {
      const tunnel = await openTunnel({ ...options, ...this.#reports, signal });
      if (signal.aborted) return;
      tunnel.finished.then(this.#finished.resolve, this.#finished.reject);
      this.tunnel = tunnel;
      this.#onOpen();
    } catch (error) {
      if (!signal.aborted) this.#finished.reject(error);
    }
  }
}

/** Whether an address is that of an entry of `reverse` or `reverseSocks`, whose host the server may have resolved. */
function isReverse({ reverse = [], reverseSocks = [] }: OpenTunnelOptions, addr: string): boolean {
  const listens = [...reverse.map((text) => parseForward("reverse", text).listen), ...reverseSocks].map(normalize);
  // The port or the path.
  const endOf = (text: string) => /[^:]*$/.exec(text)![0];
  return listens.some((listen) => endOf(listen) === endOf(addr) && splitUdp(listen)[0] === splitUdp(addr)[0]);
}

/** The tunnels of a configuration file, which follow its changes. */
export class ConfiguredTunnels implements Running {
  readonly finished: Promise<void>;
  readonly #file: string;
  readonly #end: End | undefined;
  readonly #printer: Printer;
  readonly #server: TunnelServer | undefined;
  readonly #client: Client | undefined;
  readonly #watcher: FileWatcher;
  readonly #hangUp = () => this.reload();
  /** The options that are in use. */
  #config: Config;
  /** The files as they were read last. */
  #texts: ReadonlyMap<string, string | undefined>;
  /** The addresses that are printed. */
  #printed = new Set<string>();
  #statusAddrs = new Set<string>();
  #pin: string | undefined;
  #isStopping = false;
  /** Settles when the last reload has ended. */
  #reloaded: Promise<void> = Promise.resolve();

  /**
   * Starts the tunnels. A client that cannot connect yet is opened later.
   *
   * @param end The end to run; `undefined`: each one in the file.
   * @throws {ConfigError} The file has mistakes.
   */
  constructor(file: string, end: End | undefined, reports: Reports, printer: Printer) {
    this.#file = file;
    this.#end = end;
    this.#printer = printer;
    const { config, mistakes, texts } = loadConfig(file, end);
    if (config === undefined) throw new ConfigError(mistakes);
    this.#config = config;
    this.#texts = texts;
    const { server, client } = config;
    this.#server = server && serveTunnel({ ...server, ...reports });
    this.#client = client && new Client(client, reports, () => this.#printAddresses());
    this.#watcher = new FileWatcher(() => this.#queue(() => this.#hasChanged()), printer.error);
    this.#watcher.watch(texts.keys());
    if (Deno.build.os !== "windows") Deno.addSignalListener("SIGHUP", this.#hangUp);
    this.#printAddresses();
    this.finished = this.#run();
    this.finished.catch(() => {});
  }

  /** Reads the file and applies it, also if it has not changed. */
  reload(): void {
    this.#queue(() => true);
  }

  async shutdown(options: { timeout?: number | undefined } = {}): Promise<void> {
    this.#stop();
    await Promise.all([this.#client?.shutdown(options), this.#server?.shutdown(options)]);
  }

  /** Returns the sums of the figures of both ends. */
  stats(): TunnelStats {
    const all = [this.#server, this.#client?.tunnel].flatMap((tunnel) => tunnel === undefined ? [] : [tunnel.stats()]);
    const sum = (name: Exclude<keyof TunnelStats, "refused">) => all.reduce((sum, stats) => sum + stats[name], 0);
    const refused: Record<string, number> = {};
    for (const [status, count] of all.flatMap(({ refused }) => Object.entries(refused))) {
      refused[status] = (refused[status] ?? 0) + count;
    }
    const [connections, reconnects, streams] = [sum("connections"), sum("reconnects"), sum("streams")];
    return {
      connections,
      reconnects,
      streams,
      open: sum("open"),
      sent: sum("sent"),
      received: sum("received"),
      dropped: sum("dropped"),
      refused,
    };
  }

  async #run(): Promise<void> {
    try {
      await Promise.all([this.#server?.finished, this.#client?.finished]);
    } finally {
      this.#stop();
      // Not before: without a listener the signal ends the process, and the connections that it waits for.
      if (Deno.build.os !== "windows") Deno.removeSignalListener("SIGHUP", this.#hangUp);
    }
  }

  #stop(): void {
    this.#isStopping = true;
    this.#watcher.close();
  }

  /** Reloads after earlier reloads, if it is due then. */
  #queue(isDue: () => boolean): void {
    this.#reloaded = this.#reloaded.then(async () => {
      if (!this.#isStopping && isDue()) await this.#reload();
    }).catch((error) => this.#printer.error(error));
  }

  #hasChanged(): boolean {
    return [...this.#texts].some(([path, text]) => readText(path) !== text);
  }

  async #reload(): Promise<void> {
    const { config, mistakes, texts } = loadConfig(this.#file, this.#end);
    this.#texts = texts;
    this.#watcher.watch(texts.keys());
    try {
      if (config === undefined) throw new ConfigError(mistakes);
      await this.#apply(config);
    } catch (error) {
      if (this.#isStopping) return;
      for (const mistake of error instanceof ConfigError ? error.mistakes : [error]) this.#printer.error(mistake);
      return this.#printer.log(notReloadedEntry(this.#file));
    }
    this.#printAddresses();
    this.#printer.log(reloadedEntry(this.#file));
  }

  /** Applies new options to both ends, or to neither. */
  async #apply(config: Config): Promise<void> {
    const { server, client } = config;
    for (const end of ["server", "client"] as const) {
      if ((config[end] === undefined) === (this.#config[end] === undefined)) continue;
      throw new Error(`${this.#file}: ${end} cannot be added or removed while the process runs`);
    }
    if (server !== undefined) await this.#server!.update(server);
    try {
      if (client !== undefined) await this.#client!.update(client);
    } catch (error) {
      if (server !== undefined) await this.#server!.update(this.#config.server!);
      throw error;
    }
    this.#config = config;
  }

  /** Prints the addresses that are new, and those that are not listened on any more. */
  #printAddresses(): void {
    const addresses = new Map<string, string | undefined>();
    if (this.#server !== undefined) addresses.set(this.#server.serverAddr, this.#config.server!.target);
    const { tunnel } = this.#client ?? {};
    const { client } = this.#config;
    const targets = client === undefined ? [] : targetsOf(client);
    // With several servers, events have the addresses of `reverse` at each.
    const ofServers = (client?.reverse?.length ?? 0) + (client?.reverseSocks?.length ?? 0);
    const printed = (tunnel?.servers.length ?? 1) > 1 ? targets.length - ofServers : targets.length;
    for (const [n, addr] of (tunnel?.listenAddrs ?? []).slice(0, printed).entries()) addresses.set(addr, targets[n]);
    // The server of a client that has just changed listens soon, which an event has.
    const waiting = [...this.#printed].filter((addr) => client !== undefined && isReverse(client, addr));
    for (const addr of this.#printed) {
      const isListening = addresses.has(addr) || tunnel?.listenAddrs.includes(addr);
      if (!isListening && !waiting.includes(addr)) this.#printer.log(stoppedEntry(addr));
    }
    for (const [addr, to] of addresses) {
      if (!this.#printed.has(addr)) this.#printer.log(listeningEntry(addr, this.#printer.hasTargets ? to : undefined));
    }
    this.#printed = new Set([...addresses.keys(), ...waiting]);
    const pin = this.#server?.pin;
    if (pin !== undefined && pin !== this.#pin) this.#printer.log(pinEntry(pin));
    this.#pin = pin;
    const statusAddrs = [this.#server?.statusAddr, tunnel?.statusAddr].filter((addr) => addr !== undefined);
    for (const addr of statusAddrs) if (!this.#statusAddrs.has(addr)) this.#printer.log(statusEntry(addr));
    this.#statusAddrs = new Set(statusAddrs);
  }
}
