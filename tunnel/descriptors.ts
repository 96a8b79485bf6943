/**
 * Keeps one file descriptor in reserve, to accept and close connections when the process has no other left.
 *
 * @module
 */

// Always there, and reading it has no effect.
const PATH = "/dev/null";

/** Whether an error means that the process has no free descriptor. */
export function isLimitError(error: unknown): boolean {
  return error instanceof Error && /too many open files/i.test(error.message);
}

/** Opens a descriptor of the cheapest kind that the process has permission for; `undefined` if it has none. */
function open(): { close(): void } | undefined {
  // Without the queries a process on a terminal would ask for the permissions.
  if (Deno.permissions.querySync({ name: "read", path: PATH }).state === "granted") return Deno.openSync(PATH);
  const { state } = Deno.permissions.querySync({ name: "net", host: "127.0.0.1:0" });
  return state === "granted" ? Deno.listen({ hostname: "127.0.0.1", port: 0 }) : undefined;
}

/** Whether the process has `count` free descriptors. `true` also if it may not open any. */
export function hasFree(count: number): boolean {
  const opened: ({ close(): void } | undefined)[] = [];
  try {
    for (let n = 0; n < count; n++) opened.push(open());
    return true;
  } catch (error) {
    return !isLimitError(error);
  } finally {
    for (const descriptor of opened) descriptor?.close();
  }
}

/** Returns the maximum number of descriptors; `undefined` without full permissions, and on systems other than Linux. */
export function descriptorLimit(): number | undefined {
  try {
    if (Deno.permissions.querySync({ name: "read", path: "/proc" }).state !== "granted") return undefined;
    const [, limit] = /^Max open files +(\d+)/m.exec(Deno.readTextFileSync("/proc/self/limits")) ?? [];
    return limit === undefined ? undefined : Number(limit);
  } catch {
    return undefined;
  }
}

/** One descriptor of the process in reserve, shared by all listeners. */
class Reserve {
  #users = 0;
  #file: Deno.FsFile | undefined;

  /** Opens the descriptor for the first user. */
  add(): void {
    this.#users++;
    this.hold();
  }

  /** Closes the descriptor after the last user. */
  remove(): void {
    if (--this.#users === 0) this.release();
  }

  /**
   * Opens the descriptor unless it is open.
   *
   * @returns `false` if the process has no descriptor left. `true` also if it may not read files.
   */
  hold(): boolean {
    if (this.#file !== undefined || this.#users === 0) return true;
    try {
      // Without the query a process on a terminal would ask for the permission.
      if (Deno.permissions.querySync({ name: "read", path: PATH }).state === "granted") {
        this.#file = Deno.openSync(PATH);
      }
      return true;
    } catch (error) {
      return !isLimitError(error);
    }
  }

  /** Closes the descriptor, so that another can be opened; returns whether it was open. */
  release(): boolean {
    const isHeld = this.#file !== undefined;
    this.#file?.close();
    this.#file = undefined;
    return isHeld;
  }
}

/** The descriptor in reserve. */
export const reserve = new Reserve();
