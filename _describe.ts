/**
 * Values in the messages of errors.
 *
 * @module
 */

/** Returns a text for a value that is out of bounds; a string is in quotes, so that it does not look like a number. */
export function describeValue(value: unknown): string {
  if (typeof value === "string") return JSON.stringify(value);
  return typeof value === "object" ? describeType(value) : String(value);
}

/** Returns the class of an object, or the type of any other value, which may be secret or long itself. */
export function describeType(value: unknown): string {
  if (value === null || typeof value !== "object") return value === null ? "null" : typeof value;
  return Object.getPrototypeOf(value)?.constructor?.name || "object";
}
