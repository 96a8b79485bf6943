/**
 * Accepts clients that show a certificate.
 *
 * @module
 */

import { Server, type TLSSocket } from "node:tls";
import { formatPeer, UNNAMED } from "./address.ts";
import { ConnectionDuplex } from "./duplex.ts";
import { errorText, RefusalError, wrapError } from "./errors.ts";
import { CertifiedAddress, userOfCertificate } from "./identity.ts";
import type { ServeTunnelOptions } from "./options.ts";
import { PreparedListener } from "./prepared_listener.ts";
import { encodeRefusal, NO_CERTIFICATE } from "./refusal.ts";
import type { Listening, Socket } from "./socket.ts";
import { checkKeyPair, TlsSocket } from "./tls.ts";
import { HANDSHAKE_TIMEOUT, setDeadline } from "./wait.ts";
import { readCertificate, readCertificates } from "./x509.ts";

// Milliseconds until a connection that was refused is closed: what the client sends meanwhile must not reset it before
// the client has read why. Larger: reaches slower clients; smaller: a refused client occupies a descriptor for less time.
const LINGER = 1000;

/** The certificates of a server. */
export interface ServerTls {
  cert: string;
  key: string;
  clientCa: string;
}

/**
 * Checks the CA certificates of clients, and the certificate of a server that requires those of clients.
 *
 * @throws {RangeError} They are malformed, or cannot be combined.
 */
export function checkClientCa({ cert, key, clientCa }: Pick<ServeTunnelOptions, "cert" | "key" | "clientCa">): void {
  if (clientCa === undefined) return;
  if (cert === undefined) throw new RangeError("clientCa requires cert and key, received only clientCa");
  readCertificates("clientCa", clientCa);
  checkKeyPair(cert, key!);
}

/**
 * Accepts connections with TLS, whose clients have shown a certificate of one of the CAs.
 *
 * @param report Called with the error of each connection that is refused.
 */
export function listenForCertificates(
  listening: Listening,
  tls: ServerTls,
  report: (error: Error) => void,
): PreparedListener {
  return new PreparedListener(listening, (socket, signal) => secure(socket, tls, report, signal), report);
}

/** Awaits the handshake of a connection. */
async function secure(
  socket: Socket,
  tls: ServerTls,
  report: (error: Error) => void,
  signal: AbortSignal,
): Promise<Socket | undefined> {
  const peer = socket.remoteAddr as Deno.NetAddr;
  const name = formatPeer(peer) ?? UNNAMED;
  const duplex = new ConnectionDuplex(socket);
  const secured = await secureServer(duplex, tls).catch((error) => {
    throw wrapError(`TLS handshake with ${name} failed`, error);
  });
  try {
    return new TlsSocket(secured, duplex, socket, new CertifiedAddress(peer, userOf(secured)));
  } catch (error) {
    if (signal.aborted) {
      secured.destroy();
      return undefined;
    }
    report(new RefusalError(403, `Refused a connection from ${name}`, error));
    await refuse(secured, errorText(error));
    return undefined;
  }
}

/** Awaits the handshake of a client; closes the connection if it fails. */
async function secureServer(duplex: ConnectionDuplex, { cert, key, clientCa }: ServerTls): Promise<TLSSocket> {
  const { promise, resolve, reject } = Promise.withResolvers<TLSSocket>();
  promise.catch(() => {});
  // A client without an accepted certificate is refused after the handshake: an alert would not say why. And Deno closes
  // without one. A server of its own, so that its events are those of this connection.
  const options = { cert, key, ca: clientCa, requestCert: true, rejectUnauthorized: false, allowHalfOpen: true };
  const server = new Server(options, resolve);
  server.on("tlsClientError", (error: Error) => reject(error));
  server.on("error", reject);
  duplex.on("error", reject);
  // Node waits for more. Later, an end is that of one direction.
  duplex.on("end", () => reject(new Error("the client has closed the connection")));
  duplex.on("close", () => reject(new Error("the client has closed the connection")));
  server.emit("connection", duplex);
  const clear = setDeadline(() => {
    reject(new Error(`handshake timed out after ${HANDSHAKE_TIMEOUT} ms`));
  }, HANDSHAKE_TIMEOUT);
  try {
    return await promise;
  } catch (error) {
    duplex.destroy();
    throw error;
  } finally {
    clear();
  }
}

/**
 * Returns the user of a client.
 *
 * @throws {Error} Its certificate is not accepted.
 */
function userOf(socket: TLSSocket): string {
  // Node reports any certificate of a resumed TLS session as authorized, also one that it has rejected before.
  if (socket.isSessionReused() !== false) throw new Error("a TLS session must not be resumed");
  const { raw } = socket.getPeerCertificate() ?? {};
  if (raw === undefined) throw new Error(NO_CERTIFICATE);
  const certificate = readCertificate(raw);
  const { validFrom, validTo } = certificate;
  const now = Date.now();
  const day = (date: Date) => date.toISOString().slice(0, 10);
  if (validTo.getTime() < now) throw new Error(`the client certificate has expired on ${day(validTo)}`);
  if (validFrom.getTime() > now) throw new Error(`the client certificate is not valid before ${day(validFrom)}`);
  if (!socket.authorized) {
    throw new Error("the client certificate is not signed for clients by a CA that the server accepts");
  }
  return userOfCertificate(certificate);
}

/** Sends the reason, and closes the connection when the client has read it. */
async function refuse(socket: TLSSocket, reason: string): Promise<void> {
  const { promise: ended, resolve } = Promise.withResolvers<void>();
  const clear = setDeadline(resolve, LINGER);
  socket.on("error", () => resolve());
  socket.on("end", () => resolve());
  socket.on("close", () => resolve());
  socket.end(encodeRefusal(reason));
  socket.resume();
  await ended;
  clear();
  socket.destroy();
}
