/**
 * Wraps and formats errors.
 *
 * @module
 */

import { SessionClosedError, StreamResetError } from "../mod.ts";

/** A connection to a proxy that ended unused: browsers open some in advance. It is not reported. */
export class UnusedError extends Error {}

/**
 * Whether a stream failed because of a lost session, which reports it, or of a fault that the peer reports, or was not
 * used at all.
 */
export function isReportedElsewhere(error: unknown): boolean {
  return error instanceof SessionClosedError || error instanceof StreamResetError || error instanceof UnusedError;
}

/** Makes an error whose message is `what`, a colon and the message of the cause. */
export function wrapError(what: string, cause: unknown): Error {
  return new Error(`${what}: ${errorText(cause)}`, { cause });
}

/** A request that this end has refused. */
export class RefusalError extends Error {
  /** The HTTP status of the response. */
  readonly status: number;

  /** Makes an error whose message is `what`, a colon and the message of the cause. */
  constructor(status: number, what: string, cause: unknown) {
    super(`${what}: ${errorText(cause)}`, { cause });
    this.status = status;
  }
}

/** Formats the message of an error for use after a colon. */
export function errorText(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  // The system's message differs between systems.
  if (error instanceof Deno.errors.AddrInUse) return "address in use";
  const message = error.message.replace(/ \(os error \d+\)/, "");
  // Not of a name such as Content-Length.
  return /^[A-Z](?: |[a-z]+\b(?!-))/.test(message) ? message[0]!.toLowerCase() + message.slice(1) : message;
}

/**
 * Formats a value for an error: a text in quotes, shortened; a list or an object, which may contain secrets, as its
 * type.
 */
export function show(value: unknown): string {
  if (typeof value === "object" && value !== null) return typeName(value);
  const text = typeof value === "string" ? JSON.stringify(value) : String(value);
  return text.length > 60 ? `${text.slice(0, 60)}...` : text;
}

/** Names the type of a value for an error, where the value may be a secret. */
export function typeName(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (typeof value === "object") return Array.isArray(value) ? "a list" : "an object";
  return typeof value === "string" ? "a text" : `a ${typeof value}`;
}

/** What the options `cert` and `key` must be, for errors. */
export const KEY_PAIR = "cert and key must be a certificate and its private key in PEM";

/** Returns the error, or wraps another value that was thrown. */
export function toError(thrown: unknown): Error {
  return thrown instanceof Error ? thrown : new Error(String(thrown), { cause: thrown });
}

/** An error that lasts: another attempt would fail in the same way. */
export class PermanentError extends Error {}

/** A connection that ended in the middle of a handshake. */
export class CutError extends Error {}

// Deno's names and Node's codes of connections that were cut.
const CUTS = [
  "NotConnected",
  "ConnectionReset",
  "ConnectionAborted",
  "BrokenPipe",
  "UnexpectedEof",
  "ECONNRESET",
  "EPIPE",
];

/** Whether the error, or one of its causes, says that a connection was cut, so that another attempt may succeed. */
export function isCut(error: unknown): boolean {
  if (!(error instanceof Error) || error instanceof PermanentError) return false;
  const { code } = error as { code?: unknown };
  return error instanceof CutError || CUTS.includes(error.name) || CUTS.includes(`${code}`) || isCut(error.cause);
}
