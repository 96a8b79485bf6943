/**
 * TLS of `node:tls` over any connection: with client certificates and pins, which TLS of Deno does not support on an open
 * connection. See docs/decisions/011-tls-of-node-for-client-certificates.md.
 *
 * @module
 */

import { createPrivateKey, createPublicKey } from "node:crypto";
import { isIP } from "node:net";
// Not by name: Node 20 lacks `getCACertificates`, and an import of the tunnel would fail there.
import nodeTls, {
  connect,
  type ConnectionOptions,
  createSecureContext,
  type SecureContext,
  type TLSSocket,
} from "node:tls";
import type { Connection } from "../mod.ts";
import { ConnectionDuplex } from "./duplex.ts";
import { CutError, errorText, KEY_PAIR, PermanentError } from "./errors.ts";
import { pinOf } from "./pin.ts";
import { TcpSocket } from "./tcp.ts";
import { HANDSHAKE_TIMEOUT, onAbort, setDeadline } from "./wait.ts";
import { readCertificates } from "./x509.ts";

// Bytes to receive ahead of a read. Larger: the records of TLS are received in longer runs; smaller: less memory for each
// connection.
const READ_AHEAD = 256 * 1024;

/** A connection with TLS of Node. */
export class TlsSocket extends TcpSocket {
  readonly #inner: Connection;

  /**
   * @param socket After its handshake.
   * @param duplex The stream below.
   * @param inner The connection below that.
   */
  constructor(socket: TLSSocket, duplex: ConnectionDuplex, inner: Connection, remoteAddr = inner.remoteAddr) {
    duplex.follow(socket);
    super(socket, {
      localAddr: inner.localAddr as Deno.NetAddr,
      remoteAddr: remoteAddr as Deno.NetAddr,
      readAhead: READ_AHEAD,
    });
    this.#inner = inner;
  }

  /** A reset is not possible. */
  override reset(): void {
    this.close();
  }

  override setNoDelay(on: boolean): void {
    this.#inner.setNoDelay?.(on);
  }

  /** The connection below has it already. */
  override setKeepAlive(): void {}
}

/** How a client verifies its server, and what it shows. */
export interface ClientTls {
  /** Certificates to trust besides the system's. */
  ca?: string | undefined;
  cert?: string | undefined;
  key?: string | undefined;
  /** In its canonical form. Without `ca`, nothing else is verified. */
  pin?: string | undefined;
}

/** The certificates that are parsed already: parsing those of the system lasts milliseconds. */
const contexts = new WeakMap<ClientTls, SecureContext>();

function contextOf(tls: ClientTls): SecureContext {
  const { ca, cert, key } = tls;
  const known = contexts.get(tls);
  if (known !== undefined) return known;
  const context = createSecureContext({
    ...ca === undefined ? {} : { ca: [...nodeTls.getCACertificates("default"), ca] },
    ...cert === undefined ? {} : { cert, key: key! },
  });
  contexts.set(tls, context);
  return context;
}

/** Waits for the end of a handshake. */
async function handshake(socket: TLSSocket, duplex: ConnectionDuplex): Promise<void> {
  const { promise, resolve, reject } = Promise.withResolvers<void>();
  socket.once("secureConnect", resolve);
  socket.on("error", reject);
  socket.on("close", () => reject(new CutError("the connection was closed during the TLS handshake")));
  duplex.on("error", (error) => socket.destroy(error));
  duplex.on("close", () => socket.destroy());
  const late = () => reject(new Error(`handshake timed out after ${HANDSHAKE_TIMEOUT} ms`));
  const clear = setDeadline(late, HANDSHAKE_TIMEOUT);
  try {
    await promise;
  } finally {
    clear();
  }
}

/** Starts TLS on a connection; closes it if that fails. */
export async function secureByNode(
  connection: Connection,
  hostname: string,
  tls: ClientTls,
  signal: AbortSignal,
): Promise<Connection> {
  const duplex = new ConnectionDuplex(connection);
  const options: ConnectionOptions = {
    // Any stream is accepted.
    socket: duplex as unknown as TLSSocket,
    host: hostname,
    ...isIP(hostname) === 0 ? { servername: hostname } : {},
    secureContext: contextOf(tls),
    rejectUnauthorized: tls.pin === undefined || tls.ca !== undefined,
  };
  const socket = connect({ ...options, allowHalfOpen: true } as ConnectionOptions);
  const off = onAbort(signal, () => socket.destroy());
  try {
    await handshake(socket, duplex);
    checkPin(socket, tls.pin);
    return new TlsSocket(socket, duplex, connection);
  } catch (error) {
    socket.destroy();
    duplex.destroy();
    throw isUntrusted(error) ? new PermanentError(errorText(error), { cause: error }) : error;
  } finally {
    off();
  }
}

/** Whether the certificate of the server is not accepted, or the server does not use TLS. */
function isUntrusted(error: unknown): boolean {
  const { code = "" } = error as NodeJS.ErrnoException;
  return /CERT|ISSUER|SIGNATURE|CRL|^ERR_SSL/.test(code);
}

/** Throws unless the server's certificate has the pin. */
function checkPin(socket: TLSSocket, pin: string | undefined): void {
  if (pin === undefined) return;
  const { raw } = socket.getPeerCertificate() ?? {};
  if (raw === undefined) throw new PermanentError("the server has shown no certificate");
  const found = pinOf(raw);
  if (found === pin) return;
  throw new PermanentError(
    `the certificate of the server has the pin ${found}, expected ${pin}: ` +
      "if the server has a new key, use its pin; else another machine answers",
  );
}

/**
 * Checks a certificate and its private key: Node would ignore them.
 *
 * @throws {RangeError} They are malformed, or do not belong together.
 */
export function checkKeyPair(cert: string, key: string): void {
  const [{ publicKey }] = readCertificates("cert", cert);
  let found: Uint8Array;
  try {
    // A private key is accepted, too, and its public key is returned.
    found = createPublicKey(createPrivateKey(key).export({ type: "pkcs8", format: "pem" })).export({
      type: "spki",
      format: "der",
    });
  } catch (error) {
    throw new RangeError(`${KEY_PAIR}: ${errorText(error)}`, { cause: error });
  }
  if (found.length === publicKey.length && found.every((byte, n) => byte === publicKey[n])) return;
  throw new RangeError(`${KEY_PAIR}, received the key of another certificate`);
}
