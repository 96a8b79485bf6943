/**
 * Describes the certificate of a TLS server, whether or not it is trusted.
 *
 * @module
 */

import { isIP } from "node:net";
import { connect, type TLSSocket } from "node:tls";
import { printable } from "./bytes.ts";
import { pinOf } from "./pin.ts";
import type { ClientTls } from "./tls.ts";
import { setDeadline } from "./wait.ts";

// Milliseconds. Larger: tolerates slower servers; smaller: an earlier answer.
const TIMEOUT = 4000;

/** A certificate, as far as it is described. */
type Certificate = ReturnType<TLSSocket["getPeerCertificate"]>;

/** What the client shows. */
type Shown = Pick<ClientTls, "cert" | "key">;

/** Returns the certificate that a server shows; `undefined` if it shows none. */
async function certificateOf(
  host: string,
  port: number,
  servername: string,
  { cert, key }: Shown,
): Promise<Certificate | undefined> {
  const { promise, resolve } = Promise.withResolvers<Certificate | undefined>();
  // Not verified: nothing is sent, and the connection that is used verifies.
  const name = isIP(servername) === 0 ? { servername } : {};
  const shown = cert === undefined ? {} : { cert, key: key! };
  const socket = connect({ host, port, ...name, ...shown, rejectUnauthorized: false });
  const closed = Promise.withResolvers<void>();
  const clear = setDeadline(() => {
    resolve(undefined);
    closed.resolve();
  }, TIMEOUT);
  socket.on("secureConnect", () => resolve(socket.getPeerCertificate()));
  socket.on("error", () => resolve(undefined));
  socket.on("close", () => {
    resolve(undefined);
    closed.resolve();
  });
  try {
    return await promise;
  } finally {
    // In order: the server would log an end without `close_notify`.
    socket.end();
    socket.resume();
    await closed.promise;
    clear();
    socket.destroy();
  }
}

/** Returns the date of a time such as "Jan  1 00:00:00 2120 GMT". */
function dateOf(time: string): string {
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? time : date.toISOString().slice(0, 10);
}

/**
 * Describes the certificate that a server shows; returns `undefined` if it shows none.
 *
 * @param host The address to connect to.
 * @param servername The name that the certificate must have.
 */
export async function describeCertificate(
  host: string,
  port: number,
  servername: string,
  shown: Shown = {},
): Promise<string | undefined> {
  const certificate = await certificateOf(host, port, servername, shown);
  if (certificate?.valid_to === undefined) return undefined;
  const { subject, issuer, subjectaltname = "", valid_to } = certificate;
  const names = subjectaltname.replaceAll(/(DNS|IP Address):/g, "") || subject?.CN || "no name";
  const by = issuer?.CN ?? issuer?.O ?? "an unnamed issuer";
  return printable(`of ${names}, issued by ${by}, valid until ${dateOf(valid_to)}, pin ${pinOf(certificate.raw)}`);
}
