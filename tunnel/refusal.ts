/**
 * Refusals of clients after the TLS handshake: where a server that requires a certificate says why it closes.
 *
 * @module
 */

import type { Address, Connection } from "../mod.ts";
import { encoder, printable } from "./bytes.ts";
import { PermanentError } from "./errors.ts";

// The first bytes of a refusal. No version of smux, and no hello of a resumable connection, begins with them.
const BEGIN = "HTTP/1.1 403 ";
const END = "\r\n\r\n";
// Bytes. Larger: longer reasons; smaller: less that a peer of another protocol makes the client wait for.
const MAX_REFUSAL = 512;

/** The reason to refuse a client without a certificate. */
export const NO_CERTIFICATE = "a client certificate is required";

/** Encodes a refusal. */
export function encodeRefusal(reason: string): Uint8Array {
  return encoder.encode(`${BEGIN}${printable(reason).slice(0, MAX_REFUSAL - BEGIN.length - END.length)}${END}`);
}

/** Returns the error of a client that reads a refusal. */
function refusalError(name: string, reason: string): PermanentError {
  return new PermanentError(
    reason === NO_CERTIFICATE
      ? `Cannot connect to ${name}: the server requires a client certificate: use cert and key`
      : `Cannot connect to ${name}: the server refuses the client: ${reason}`,
  );
}

/** Returns the error of an alert about the client's certificate; `undefined` for any other error. */
function alertError(name: string, error: unknown): PermanentError | undefined {
  const [, alert] = /received fatal alert: (\w+)/.exec(String(error)) ?? [];
  if (alert === undefined) return undefined;
  if (alert === "CertificateRequired") return refusalError(name, NO_CERTIFICATE);
  // Such as BadCertificate, CertificateExpired, UnknownCA and AccessDenied.
  if (!/Certificate|CA|Denied/i.test(alert)) return undefined;
  return new PermanentError(
    `Cannot connect to ${name}: the server does not accept the client's certificate: ${alert}`,
    {
      cause: error,
    },
  );
}

/**
 * A client's connection with TLS whose first bytes may be a refusal, or an alert: with TLS 1.3 the server verifies the
 * certificate of a client after the client's handshake has ended.
 */
export class RefusableConnection implements Connection {
  readonly #inner: Connection;
  /** The address of the server, for errors. */
  readonly #name: string;
  /** Bytes that were read to find a refusal. */
  #held = new Uint8Array();
  #isAnswered = false;
  /** The first read, while it is pending. */
  #first: Promise<unknown> | undefined;
  #refusal: PermanentError | undefined;

  constructor(inner: Connection, name: string) {
    this.#inner = inner;
    this.#name = name;
  }

  get localAddr(): Address | undefined {
    return this.#inner.localAddr;
  }

  get remoteAddr(): Address | undefined {
    return this.#inner.remoteAddr;
  }

  read(p: Uint8Array): Promise<number | null> {
    if (this.#isAnswered && this.#held.length === 0) return this.#inner.read(p);
    return this.#readFirst(p);
  }

  async #readFirst(p: Uint8Array): Promise<number | null> {
    if (!this.#isAnswered) {
      const first = this.#receive();
      this.#first = first;
      await first;
      this.#isAnswered = true;
    }
    if (this.#held.length === 0) return p.length === 0 ? 0 : await this.#inner.read(p);
    const count = Math.min(p.length, this.#held.length);
    p.set(this.#held.subarray(0, count));
    this.#held = this.#held.slice(count);
    return count;
  }

  /** Reads until the bytes are a refusal, or cannot become one. */
  async #receive(): Promise<void> {
    const p = new Uint8Array(MAX_REFUSAL);
    let text = "";
    try {
      for (let length = 0; length < p.length;) {
        const count = await this.#inner.read(p.subarray(length));
        if (count === null) break;
        length += count;
        this.#held = p.slice(0, length);
        text = String.fromCharCode(...this.#held);
        if (!text.startsWith(BEGIN.slice(0, length)) || text.includes(END)) break;
      }
    } catch (error) {
      this.#refusal = alertError(this.#name, error);
      throw this.#refusal ?? error;
    }
    if (!text.startsWith(BEGIN) || !text.includes(END)) return;
    this.#refusal = refusalError(this.#name, printable(text.slice(BEGIN.length, text.indexOf(END))));
    throw this.#refusal;
  }

  async write(p: Uint8Array): Promise<number> {
    try {
      return await this.#inner.write(p);
    } catch (error) {
      // The reason may have arrived before the connection was closed.
      if (!this.#isAnswered) await this.#first?.catch(() => {});
      throw this.#refusal ?? error;
    }
  }

  async closeWrite(): Promise<void> {
    await this.#inner.closeWrite?.();
  }

  close(): void {
    this.#inner.close();
  }

  setNoDelay(on?: boolean): void {
    this.#inner.setNoDelay?.(on);
  }

  ref(): void {
    this.#inner.ref?.();
  }

  unref(): void {
    this.#inner.unref?.();
  }
}
