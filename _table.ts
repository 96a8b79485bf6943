/**
 * The streams of a session, each found by its id.
 *
 * A `Map` does that too, but V8 makes its store anew as entries come and go, and the old store points to the new one.
 * Once a collection of all memory has found one of them, it counts as old, and the quick collections between that one
 * and the next keep every store after it with all that was in them. An object without a prototype has no such chain, and
 * hashes integers with a seed, so that a peer cannot choose ids that collide.
 *
 * @module
 */

/** What a table can hold. */
export interface Entry {
  /** What it is found by: an integer from 0 to 2^32 - 1. */
  readonly id: number;
}

/** Entries by their ids. */
export class Table<T extends Entry> {
  readonly #entries: Record<number, T> = Object.create(null);
  #size = 0;

  /** Number of entries. */
  get size(): number {
    return this.#size;
  }

  /** Returns the entry with this id. */
  get(id: number): T | undefined {
    return this.#entries[id];
  }

  /** Adds an entry, whose id no other has. */
  add(entry: T): void {
    this.#entries[entry.id] = entry;
    this.#size++;
  }

  /** Removes an entry; returns whether it was in the table. */
  delete(entry: T): boolean {
    if (this.#entries[entry.id] !== entry) return false;
    delete this.#entries[entry.id];
    this.#size--;
    return true;
  }

  /** Returns all entries, by ascending id. */
  values(): T[] {
    return Object.values(this.#entries);
  }
}
