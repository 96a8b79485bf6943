/**
 * Watches files for changes.
 *
 * @module
 */

import { dirname } from "node:path";
import { wrapError } from "./errors.ts";

// Milliseconds from a change to the call. Larger: the steps of an editor or a copy are more often over; smaller: an
// earlier call.
const DELAY = 100;

/** Calls a function after files may have changed, once for changes that follow each other. */
export class FileWatcher {
  readonly #changed: () => void;
  readonly #report: (error: unknown) => void;
  #folders = "";
  #watcher: Deno.FsWatcher | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /**
   * @param changed Called also for changes of other files in the same folders.
   * @param report Called when files cannot be watched.
   */
  constructor(changed: () => void, report: (error: unknown) => void) {
    this.#changed = changed;
    this.#report = report;
  }

  /** Watches these files instead of earlier ones. */
  watch(paths: Iterable<string>): void {
    // An editor replaces a file by another one, whose changes only the folder reports. A link may be replaced, or its
    // target.
    const folders = [...new Set([...paths].flatMap((path) => [dirname(path), dirname(followLink(path))]))].sort();
    if (folders.join("\n") === this.#folders) return;
    this.close();
    this.#folders = folders.join("\n");
    try {
      this.#watcher = Deno.watchFs(folders, { recursive: false });
    } catch (error) {
      return this.#report(wrapError(`Cannot watch ${folders.join(", ")}`, error));
    }
    this.#run(this.#watcher);
  }

  /** Stops watching. */
  close(): void {
    clearTimeout(this.#timer);
    this.#timer = undefined;
    this.#watcher?.close();
    this.#watcher = undefined;
    this.#folders = "";
  }

  async #run(watcher: Deno.FsWatcher): Promise<void> {
    try {
      for await (const { kind } of watcher) {
        // The own reading of the files is reported too.
        if (kind === "access" || watcher !== this.#watcher) continue;
        this.#timer ??= setTimeout(() => {
          this.#timer = undefined;
          this.#changed();
        }, DELAY);
      }
    } catch (error) {
      this.#report(wrapError("Cannot watch files any more", error));
    }
  }
}

/** Returns the path of the file that a link leads to. */
function followLink(path: string): string {
  try {
    return Deno.realPathSync(path);
  } catch {
    return path;
  }
}
