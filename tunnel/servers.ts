/**
 * Keeps a client connected to each of its servers, and chooses the one for new connections.
 *
 * @module
 */

import type { Session, Stream } from "../mod.ts";
import type { Activity } from "./activity.ts";
import { errorText, wrapError } from "./errors.ts";
import { afterWait, isPermanent, Link, type LinkSettings } from "./link.ts";
import { TunnelRefusedError, type TunnelServerState } from "./options.ts";
import { sleep } from "./wait.ts";

// Milliseconds that a start waits for the servers before the first that has answered. Larger: prefers a slower network to
// them; smaller: an earlier start while one of them is silent.
const PREFERENCE = 250;

/** What the servers need from their client. */
export interface ServersHost {
  readonly activity: Activity;
  /** Aborts when nothing new may begin. */
  readonly stopping: AbortSignal;
  /** Called with each new session, before anything else uses it. */
  started(link: Link, session: Session): void;
  /** A server is used from now on: its present session, and each one after it. */
  joined(link: Link): void;
  /** None of the servers could be reached for `wait` milliseconds. */
  unavailable(): void;
  /** A server can be reached. Fulfils when the client listens again, where it can. */
  available(): Promise<void>;
  /** All links have ended, or with an error: the last connection was lost, without `reconnect`. */
  ended(error?: unknown): void;
  /** Makes the end of the tunnel wait for a task. */
  track(task: Promise<unknown>): void;
}

/** The first attempt to connect to each server. */
export type Starts = ReadonlyMap<Link, Promise<void>>;

/** New servers of a client. */
export interface Plan {
  readonly settings: readonly LinkSettings[];
  /** One for each of the settings: that of the present servers where it can have them. */
  readonly links: readonly Link[];
  readonly added: readonly Link[];
  starts: Starts | undefined;
}

/** The servers of a client, in the order of preference, each with a link of its own. */
export class Servers {
  readonly #host: ServersHost;
  #links: readonly Link[] = [];
  /** The links that are used: the host knows them. */
  readonly #joined = new Set<Link>();
  /** The links that have not ended, former ones among them. */
  readonly #living = new Set<Link>();
  #settings: LinkSettings;
  /** The link of new connections, or of the last ones while no server can be reached. */
  #used: Link | undefined;
  /** Called when a link has changed. */
  readonly #watchers = new Set<() => void>();
  #isUsed = false;
  #hasEnded = false;

  constructor(settings: readonly LinkSettings[], host: ServersHost) {
    this.#host = host;
    this.#settings = settings[0]!;
    this.#links = settings.map((settings) => this.#make(settings));
  }

  /** The links, in the order of preference, also of servers that have refused the client. */
  get links(): readonly Link[] {
    return this.#links;
  }

  /** The first link that is up. */
  get up(): Link | undefined {
    return this.#links.find((link) => link.isUp);
  }

  /** The address of the server of new connections. */
  get serverAddr(): string {
    return (this.#used ?? this.#links[0]!).serverAddr;
  }

  get states(): TunnelServerState[] {
    return this.#links.map(({ serverAddr, isUp }) => ({ addr: serverAddr, isUp }));
  }

  /** Whether new sessions of a link are used. */
  hasJoined(link: Link): boolean {
    return this.#joined.has(link);
  }

  get #hasMany(): boolean {
    return this.#links.length > 1;
  }

  #make(settings: LinkSettings): Link {
    const { activity, stopping } = this.#host;
    const link: Link = new Link(settings, activity, {
      started: (session) => this.#host.started(link, session),
      changed: () => this.#changed(),
      unavailable: () => {
        if (this.#links.every(({ isAvailable }) => !isAvailable)) this.#host.unavailable();
      },
      available: async () => {
        if (this.#links.includes(link)) await this.#host.available();
      },
    }, stopping);
    return link;
  }

  /**
   * Connects to servers, to each at the same time.
   *
   * @param hasMany Whether the client has or will have several servers.
   * @param start Connects by one link.
   * @returns The attempts, once one of them has succeeded, and those before it have settled or are late.
   * @throws {Error} None has succeeded. The errors of several servers have been reported.
   */
  async connect(links: readonly Link[], hasMany: boolean, start: (link: Link) => Promise<void>): Promise<Starts> {
    const starts = this.begin(links, hasMany, start);
    try {
      await Promise.any(starts.values());
      await this.#prefer([...starts]);
      return starts;
    } catch (error) {
      const { errors } = error as AggregateError;
      if (links.length === 1 || this.#host.stopping.aborted) throw errors[0];
      // Another attempt may succeed where a server was only unreachable.
      const cause = errors.find((error) => !isPermanent(error)) ?? errors[0];
      throw wrapError(`Cannot connect to any of ${links.length} servers`, cause);
    }
  }

  /** Begins to connect to servers, and reports each outcome if the client has several. */
  begin(links: readonly Link[], hasMany: boolean, start: (link: Link) => Promise<void>): Starts {
    return new Map(links.map((link) => {
      const starting = start(link);
      const reporting = starting.then(() => hasMany && this.#reached(link), (error) => {
        if (hasMany) this.#failed(link, error);
      });
      this.#host.track(reporting);
      return [link, starting];
    }));
  }

  /** Waits for the servers before the first that has answered, but not long. */
  async #prefer(starts: readonly [Link, Promise<void>][]): Promise<void> {
    const first = starts.findIndex(([link]) => link.isUp);
    if (first <= 0) return;
    const settled = new AbortController();
    const preferred = starts.slice(0, first).map(([, starting]) => starting);
    Promise.any(preferred).catch(() => {}).finally(() => settled.abort());
    await sleep(PREFERENCE, AbortSignal.any([settled.signal, this.#host.stopping]));
  }

  #reached({ serverAddr, stopping }: Link): void {
    if (!stopping.aborted) this.#host.activity.emit({ type: "reached", serverAddr });
  }

  /** Reports an error with the server that it concerns. */
  #failed({ serverAddr, stopping }: Link, error: unknown): void {
    if (stopping.aborted) return;
    const isNamed = errorText(error).includes(serverAddr);
    this.#host.activity.report(isNamed ? error : wrapError(`Cannot use ${serverAddr}`, error));
  }

  /** Plans new servers. */
  plan(settings: readonly LinkSettings[]): Plan {
    const links = settings.map((settings) =>
      this.#links.find((link) => this.#living.has(link) && link.accepts(settings)) ?? this.#make(settings)
    );
    return { settings, links, added: links.filter((link) => !this.#links.includes(link)), starts: undefined };
  }

  /** Connects to new servers if no present one stays. */
  async prepare(plan: Plan): Promise<void> {
    const { links, added } = plan;
    if (added.length < links.length) return;
    try {
      // One attempt only: the present connections stay unless it succeeds.
      plan.starts = await this.connect(added, added.length > 1, (link) => link.open(false));
    } catch (error) {
      for (const link of added) link.end();
      throw error;
    }
  }

  /** Begins to connect to the new servers of a plan, and configures all of its links. */
  complete({ settings, links, added, starts }: Plan): Starts {
    links.forEach((link, n) => link.configure(settings[n]!));
    return starts ??
      this.begin(added, links.length > 1, (link) => {
        const { retry = false, reconnect = true } = settings[0]!;
        return link.open(retry || reconnect);
      });
  }

  /** Uses these links, in this order, and ends the others after their last streams. */
  use(links: readonly Link[], settings: LinkSettings, starts: Starts): void {
    const former = this.#links;
    this.#links = links;
    this.#settings = settings;
    this.#isUsed = true;
    for (const [link, starting] of starts) {
      this.#living.add(link);
      const living = this.#live(link, starting);
      this.#host.track(living.catch(() => {}));
      living.then(() => this.#end(link), (error) => this.#end(link, error));
    }
    for (const link of former) if (!links.includes(link)) link.retire();
    this.#changed();
  }

  /** Keeps a link connected until it ends. */
  async #live(link: Link, starting: Promise<void>): Promise<void> {
    await starting.catch(async (error) => {
      // It has a session where only a request to listen has failed.
      if (link.session !== undefined) return;
      if (isPermanent(error) || this.#settings.reconnect === false || link.stopping.aborted) return;
      await link.open(true).then(() => this.#reached(link), (error) => this.#failed(link, error));
    });
    if (link.session === undefined) return;
    this.#joined.add(link);
    if (!link.stopping.aborted) this.#host.joined(link);
    await link.run();
  }

  #end(link: Link, error?: unknown): void {
    this.#living.delete(link);
    this.#joined.delete(link);
    link.end();
    // A former link.
    if (!this.#links.includes(link) || this.#hasEnded) return;
    const others = this.#links.filter((link) => this.#living.has(link));
    if (error !== undefined && others.some(({ session }) => session !== undefined)) {
      return this.#host.activity.report(error);
    }
    if (error === undefined && others.length > 0) return;
    this.#hasEnded = true;
    this.#host.ended(error);
  }

  /** Calls `run` with each link, former ones that have not ended among them. */
  forEach(run: (link: Link) => void): void {
    for (const link of new Set([...this.#living, ...this.#links])) run(link);
  }

  /** Notices another link of new connections, and wakes everything that waits for a change. */
  #changed(): void {
    const { up } = this;
    const former = this.#used?.serverAddr;
    if (this.#used !== undefined && !this.#links.includes(this.#used)) this.#used = undefined;
    if (this.#isUsed && up !== undefined && up !== this.#used) {
      this.#used = up;
      if (this.#hasMany) {
        this.#host.activity.emit({ type: "switched", serverAddr: up.serverAddr, formerAddr: former });
      }
    }
    for (const watcher of [...this.#watchers]) watcher();
  }

  /**
   * Waits until a server can be reached, at most `wait` milliseconds.
   *
   * @param tried Sessions to leave out.
   * @throws {Error} None could be reached, or the client is ending.
   */
  async #ready(tried: ReadonlySet<Session>): Promise<Link> {
    const { stopping } = this.#host;
    const find = () => this.#links.find((link) => link.isUp && !tried.has(link.session!));
    let found = find();
    if (found === undefined && !stopping.aborted) {
      const { promise, resolve } = Promise.withResolvers<void>();
      const retry = () => this.#links.forEach((link) => link.retry());
      const watcher = () => {
        found = find();
        if (found !== undefined || stopping.aborted) resolve();
        else retry();
      };
      this.#watchers.add(watcher);
      const clear = afterWait(this.#settings.wait, resolve);
      retry();
      await promise;
      clear();
      this.#watchers.delete(watcher);
      found = find();
    }
    if (found !== undefined) return found;
    if (stopping.aborted) throw new Error("Cannot open a stream: the tunnel has ended");
    const names = this.#links.map(({ serverAddr }) => serverAddr).join(" or ");
    throw new Error(`Cannot open a stream: not connected to ${names}`);
  }

  /**
   * Opens a stream by the first server that can be reached. When that server does not answer, or the connection to it is
   * lost before it has, by the next one.
   *
   * @throws {TunnelRefusedError} The server refuses it.
   * @throws {Error} No server could be reached, or none has answered.
   */
  async open(request: (session: Session) => Promise<Stream>): Promise<Stream> {
    const tried = new Set<Session>();
    for (;;) {
      const link = await this.#ready(tried);
      const session = link.session!;
      const requesting = request(session);
      if (!this.#hasMany) return await requesting;
      tried.add(session);
      const hasNext = () => this.#links.some((link) => link.isUp && !tried.has(link.session!));
      const result = await this.#whileUp(link, requesting, hasNext);
      if (result !== undefined) return result;
    }
  }

  /** Waits for a stream; returns `undefined` when the next server should be asked instead. */
  async #whileUp(link: Link, requesting: Promise<Stream>, hasNext: () => boolean): Promise<Stream | undefined> {
    const { promise, resolve } = Promise.withResolvers<undefined>();
    const watcher = () => {
      if (!link.isUp && hasNext()) resolve(undefined);
    };
    this.#watchers.add(watcher);
    try {
      const result = await Promise.race([requesting, promise]);
      // A late answer is not needed any more.
      if (result === undefined) requesting.then((stream) => stream.abort(), () => {});
      return result;
    } catch (error) {
      if (error instanceof TunnelRefusedError || this.#host.stopping.aborted || !hasNext()) throw error;
      return undefined;
    } finally {
      this.#watchers.delete(watcher);
    }
  }
}
