/**
 * Puts what failed into words.
 *
 * @module
 */

/** An error that says what failed, and after a colon why. */
export function wrapError(what: string, cause: unknown): Error {
  return new Error(`${what}: ${errorText(cause)}`, { cause });
}

/** An error in words that can stand behind a colon. */
export function errorText(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // Every system has words of its own for it.
  if (error instanceof Deno.errors.AddrInUse) return "address in use";
  const message = error.message.replace(/ \(os error \d+\)/, "");
  return /^[A-Z][a-z ]/.test(message) ? message[0]!.toLowerCase() + message.slice(1) : message;
}

/** The error itself, or one around what is thrown instead of an error. */
export function toError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown), { cause: thrown });
}
