/**
 * The streams of a session, each found by its id.
 *
 * A `Map` does that too, but V8 makes its store anew as entries come and go, and the old store points to the new one.
 * Once a collection of all memory has found one of them, it counts as old, and the quick collections between that one
 * and the next keep every store after it with all that was in them: streams that live for a millisecond then gather to
 * a hundred megabytes. Here nothing that was taken out points to what came later.
 *
 * @module
 */

/** What a table can hold; no entry is in two at a time. */
export interface Entry<T> {
  /** What it is found by: an integer from 0 to 2^32 - 1. */
  readonly id: number;
  /** Another one in the same bucket; only the table sets it. */
  neighbour: T | undefined;
}

// There are twice as many buckets as entries at least, so that most stand alone, and they only become more: streams come
// and go by the thousand, and what the most there were leave behind is 32 bytes at most of the 4 KiB each of them took.
const MIN_BUCKETS = 16;
const BUCKETS_PER_ENTRY = 2;
// 2^32 divided by the golden ratio: multiplied by it, numbers that are near each other fall far apart.
const FIBONACCI_MULTIPLIER = 0x9e37_79b1;

/** Entries by their ids. */
export class Table<T extends Entry<T>> {
  #buckets: (T | undefined)[] = empty(MIN_BUCKETS);
  #shift = 32 - Math.log2(MIN_BUCKETS);
  #size = 0;
  // The peer chooses ids: without this number, which is odd, it cannot tell which of them would share a bucket.
  readonly #seed = Math.floor(Math.random() * 2 ** 32) | 1;

  /** How many entries there are. */
  get size(): number {
    return this.#size;
  }

  /** The entry with this id; the one of several that came last. */
  get(id: number): T | undefined {
    let entry = this.#buckets[this.#bucketOf(id)];
    while (entry !== undefined && entry.id !== id) entry = entry.neighbour;
    return entry;
  }

  /** Takes in an entry. */
  add(entry: T): void {
    this.#place(entry);
    if (++this.#size * BUCKETS_PER_ENTRY > this.#buckets.length) this.#grow();
  }

  /** Takes an entry out, and says whether it was in. */
  delete(entry: T): boolean {
    const bucket = this.#bucketOf(entry.id);
    let before: T | undefined;
    let found = this.#buckets[bucket];
    while (found !== undefined && found !== entry) found = (before = found).neighbour;
    if (found === undefined) return false;
    if (before === undefined) this.#buckets[bucket] = entry.neighbour;
    else before.neighbour = entry.neighbour;
    entry.neighbour = undefined;
    this.#size--;
    return true;
  }

  /** All entries there are now, by ascending id. */
  values(): T[] {
    const entries: T[] = [];
    for (let entry of this.#buckets) {
      for (; entry !== undefined; entry = entry.neighbour) entries.push(entry);
    }
    return entries.sort((a, b) => a.id - b.id);
  }

  #bucketOf(id: number): number {
    const mixed = Math.imul(id, this.#seed);
    return Math.imul(mixed ^ (mixed >>> 15), FIBONACCI_MULTIPLIER) >>> this.#shift;
  }

  #place(entry: T): void {
    const bucket = this.#bucketOf(entry.id);
    entry.neighbour = this.#buckets[bucket];
    this.#buckets[bucket] = entry;
  }

  #grow(): void {
    const before = this.#buckets;
    this.#buckets = empty(before.length * 2);
    this.#shift--;
    for (let entry of before) {
      while (entry !== undefined) {
        const { neighbour }: T = entry;
        this.#place(entry);
        entry = neighbour;
      }
    }
    // What was is no more to keep anything, either.
    before.fill(undefined);
  }
}

function empty<T>(length: number): (T | undefined)[] {
  return new Array<T | undefined>(length).fill(undefined);
}
