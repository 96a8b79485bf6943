/**
 * Listens on Unix sockets, whose files outlive their processes.
 *
 * @module
 */

// Larger: tolerates a slower machine; smaller: a file that cannot be checked blocks the event loop for less time.
const CHECK_TIMEOUT = 2000;

// Results of the check: 0 while it is pending.
const IS_STALE = 1;
const IS_ALIVE = 2;

// Connects in another thread, so that the check is synchronous like `Deno.listen`.
const CHECK = `
onmessage = async ({ data: { path, result } }) => {
  let found = ${IS_ALIVE};
  try {
    (await Deno.connect({ transport: "unix", path })).close();
  } catch (error) {
    if (error instanceof Deno.errors.ConnectionRefused) found = ${IS_STALE};
  }
  Atomics.store(result, 0, found);
  Atomics.notify(result, 0);
};`;

/** Listens on a Unix socket. A file on which no process listens is replaced. */
export function listenUnix(path: string): Deno.UnixListener {
  const options = { transport: "unix" as const, path };
  try {
    return Deno.listen(options);
  } catch (error) {
    if (!(error instanceof Deno.errors.AddrInUse) || !removeStale(path)) throw error;
    return Deno.listen(options);
  }
}

/**
 * Identifies the file at a path; `undefined` without one. The file system may give the inode of a removed file to its
 * successor, which then differs in its time.
 */
export function identify(path: string): string | undefined {
  try {
    const { dev, ino, mtime } = Deno.lstatSync(path);
    return `${dev}:${ino}:${mtime?.getTime()}`;
  } catch {
    return undefined;
  }
}

/**
 * Closes a listener, which removes its file; the file of a successor at the same path stays.
 *
 * @param file The file of the listener, from `identify`.
 * @param accepting The pending `accept`. Deno removes the file when it has settled.
 */
export function closeUnix(
  listener: { close(): void },
  path: string,
  file: string | undefined,
  accepting: Promise<unknown>,
): void {
  const found = identify(path);
  if (found === undefined || found === file) return listener.close();
  // Deno removes any file at the path of the listener.
  const aside = `${path}.${crypto.randomUUID()}`;
  Deno.renameSync(path, aside);
  listener.close();
  const restore = () => Deno.renameSync(aside, path);
  // A folder that was removed meanwhile has no successor either.
  accepting.then(restore, restore).catch(() => {});
}

/** Removes a socket on which no process listens; returns whether it did. */
function removeStale(path: string): boolean {
  const file = identify(path);
  if (file === undefined || !Deno.lstatSync(path).isSocket || !isStale(path)) return false;
  // Another process may have replaced it during the check.
  if (identify(path) !== file) return false;
  Deno.removeSync(path);
  return true;
}

/** Whether connections to a Unix socket are refused. */
function isStale(path: string): boolean {
  const result = new Int32Array(new SharedArrayBuffer(4));
  const worker = new Worker(`data:text/javascript,${encodeURIComponent(CHECK)}`, { type: "module" });
  worker.postMessage({ path, result });
  Atomics.wait(result, 0, 0, CHECK_TIMEOUT);
  worker.terminate();
  return Atomics.load(result, 0) === IS_STALE;
}
