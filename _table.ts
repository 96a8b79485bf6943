/**
 * Table of the streams of a session, by id: a hash table whose entries are linked.
 *
 * Not a `Map`, whose replaced stores refer to each other and keep removed entries in memory, and not an object, which
 * takes six times as long to add and remove an entry. See docs/decisions/003-own-table-of-streams.md.
 *
 * @module
 */

// Buckets of an empty table. Larger: more memory per session; smaller: more rehashing.
const MIN_BUCKETS = 16;
// Minimum number of buckets for each entry. The table does not shrink. Larger: more memory; smaller: more collisions.
const BUCKETS_PER_ENTRY = 2;
// 2^32 divided by the golden ratio, which spreads consecutive numbers.
const FIBONACCI_MULTIPLIER = 0x9e37_79b1;

/** An entry of a table. It can be in one table only. */
export interface Entry<T> {
  /** The key: an integer from 0 to 2^32 - 1. */
  readonly id: number;
  /** The next entry of the same bucket. Set by the table only. */
  nextInBucket: T | undefined;
}

/** Entries by id. */
export class Table<T extends Entry<T>> {
  #buckets: (T | undefined)[] = makeBuckets(MIN_BUCKETS);
  // A hash without its lowest bits is the index of a bucket.
  #shift = 32 - Math.log2(MIN_BUCKETS);
  #size = 0;
  // An odd number, so that a peer, which chooses ids, cannot know which of them collide.
  readonly #seed = Math.floor(Math.random() * 2 ** 32) | 1;

  /** Number of entries. */
  get size(): number {
    return this.#size;
  }

  /** Returns the entry with this id. */
  get(id: number): T | undefined {
    let entry = this.#buckets[this.#bucketOf(id)];
    while (entry !== undefined && entry.id !== id) entry = entry.nextInBucket;
    return entry;
  }

  /** Adds an entry. Its id must not be in the table. */
  add(entry: T): void {
    this.#insert(entry);
    if (++this.#size * BUCKETS_PER_ENTRY > this.#buckets.length) this.#grow();
  }

  /** Removes an entry. Returns whether it was in the table. */
  delete(entry: T): boolean {
    const bucket = this.#bucketOf(entry.id);
    let previous: T | undefined;
    let found = this.#buckets[bucket];
    while (found !== undefined && found !== entry) found = (previous = found).nextInBucket;
    if (found === undefined) return false;
    if (previous === undefined) this.#buckets[bucket] = entry.nextInBucket;
    else previous.nextInBucket = entry.nextInBucket;
    // A removed entry must not keep others in memory.
    entry.nextInBucket = undefined;
    this.#size--;
    return true;
  }

  /** Returns all entries, by ascending id. */
  values(): T[] {
    const entries: T[] = [];
    for (let entry of this.#buckets) {
      for (; entry !== undefined; entry = entry.nextInBucket) entries.push(entry);
    }
    return entries.sort((a, b) => a.id - b.id);
  }

  #bucketOf(id: number): number {
    const mixed = Math.imul(id, this.#seed);
    return Math.imul(mixed ^ (mixed >>> 15), FIBONACCI_MULTIPLIER) >>> this.#shift;
  }

  #insert(entry: T): void {
    const bucket = this.#bucketOf(entry.id);
    entry.nextInBucket = this.#buckets[bucket];
    this.#buckets[bucket] = entry;
  }

  #grow(): void {
    const entries = this.values();
    // Until it is collected the old array must not keep entries in memory.
    this.#buckets.fill(undefined);
    this.#buckets = makeBuckets(this.#buckets.length * 2);
    this.#shift--;
    for (const entry of entries) this.#insert(entry);
  }
}

// Filled, because an array with holes is slower to read.
function makeBuckets<T>(count: number): (T | undefined)[] {
  return new Array<T | undefined>(count).fill(undefined);
}
