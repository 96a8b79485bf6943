/**
 * Table of the streams of a session, by id.
 *
 * An object without a prototype, not a `Map`. V8 replaces the store of a `Map` as entries are added and removed, and
 * each old store refers to the next. If one of them is in the old generation of the heap, minor collections keep all
 * stores after it, with their entries. An object has no such chain, and hashes integers with a seed, so a peer cannot
 * choose ids that collide. See docs/decisions/003-table-without-a-prototype.md.
 *
 * @module
 */

/** An entry of a table. */
export interface Entry {
  /** The key: an integer from 0 to 2^32 - 1. */
  readonly id: number;
}

/** Entries by id. */
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

  /** Adds an entry. Its id must not be in the table. */
  add(entry: T): void {
    this.#entries[entry.id] = entry;
    this.#size++;
  }

  /** Removes an entry. Returns whether it was in the table. */
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
