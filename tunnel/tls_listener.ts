/**
 * Accepts clients that show a certificate.
 *
 * @module
 */

import { Server, type TLSSocket } from "node:tls";
import { Channel, connections, type Listener } from "../mod.ts";
import { formatPeer, UNNAMED } from "./address.ts";
import { ConnectionDuplex } from "./duplex.ts";
import { errorText, RefusalError, wrapError } from "./errors.ts";
import { CertifiedAddress, userOfCertificate } from "./identity.ts";
import type { ServeTunnelOptions } from "./options.ts";
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

/** Accepts connections with TLS, whose clients have shown a certificate of one of the CAs. */
export class TlsListener implements Listener<Socket> {
  /** Fulfils when it has stopped and no handshake is pending. */
  readonly ended: Promise<void>;
  readonly #tls: ServerTls;
  readonly #report: (error: Error) => void;
  readonly #stopping = new AbortController();
  readonly #ready = new Channel<Socket>();
  readonly #pending = new Map<Socket, Promise<void>>();

  constructor(listening: Listening, tls: ServerTls, report: (error: Error) => void) {
    this.#tls = tls;
    this.#report = report;
    this.ended = this.#run(listening);
  }

  async accept(): Promise<Socket> {
    try {
      return await this.#ready.receive();
    } catch {
      throw new Deno.errors.BadResource("Listener has been closed");
    }
  }

  close(): void {
    this.#stopping.abort();
    this.#ready.close();
    for (const socket of this.#pending.keys()) socket[Symbol.dispose]();
  }

  async #run(listening: Listening): Promise<void> {
    const { signal } = this.#stopping;
    const onError = (error: unknown) => this.#report(wrapError("Cannot accept a connection", error));
    for await (const socket of connections(listening, { signal, onError })) {
      const prepared = this.#prepare(socket);
      this.#pending.set(socket, prepared);
      prepared.finally(() => this.#pending.delete(socket));
    }
    await Promise.all(this.#pending.values());
  }

  /** Awaits the handshake of a connection, and passes the connection on. Never rejects. */
  async #prepare(socket: Socket): Promise<void> {
    const peer = socket.remoteAddr as Deno.NetAddr;
    const name = formatPeer(peer) ?? UNNAMED;
    const duplex = new ConnectionDuplex(socket);
    const { secured, error } = await secureServer(duplex, this.#tls)
      .then((secured) => ({ secured, error: undefined }), (error) => ({ secured: undefined, error }));
    if (secured === undefined) {
      if (!this.#stopping.signal.aborted) this.#report(wrapError(`TLS handshake with ${name} failed`, error));
      return;
    }
    try {
      const user = userOf(secured);
      await this.#ready.send(new TlsSocket(secured, duplex, socket, new CertifiedAddress(peer, user)));
    } catch (error) {
      if (this.#stopping.signal.aborted) return void secured.destroy();
      this.#report(new RefusalError(403, `Refused a connection from ${name}`, error));
      await refuse(secured, errorText(error));
    }
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
