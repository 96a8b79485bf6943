/**
 * Describes the certificate of a TLS server, whether or not it is trusted.
 *
 * @module
 */

import { isIP } from "node:net";
import { Duplex } from "node:stream";
import { connect, type TLSSocket } from "node:tls";
import { printable } from "./bytes.ts";
import { pinOf } from "./pin.ts";
import type { ClientTls } from "./tls.ts";
import { setDeadline } from "./wait.ts";

// Milliseconds. Larger: tolerates slower servers; smaller: an earlier answer.
const TIMEOUT = 4000;

/** A certificate, as far as it is described. */
type Certificate = ReturnType<TLSSocket["getPeerCertificate"]>;

/** A server, or a connection to it. */
type Place = { host: string; port: number } | { socket: Duplex };

/** What the client shows. */
type Shown = Pick<ClientTls, "cert" | "key">;

/** Returns the certificate that a server shows; `undefined` if it shows none. */
async function certificateOf(
  place: Place,
  servername: string,
  { cert, key }: Shown,
): Promise<Certificate | undefined> {
  const { promise, resolve } = Promise.withResolvers<Certificate | undefined>();
  // Not verified: nothing is sent, and the connection that is used verifies.
  const name = isIP(servername) === 0 ? { servername } : {};
  const shown = cert === undefined ? {} : { cert, key: key! };
  const socket = connect({ ...place, ...name, ...shown, rejectUnauthorized: false });
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
  return describe(await certificateOf({ host, port }, servername, shown));
}

/** Describes the certificate that a server shows over a connection, which is then closed. */
export async function describeCertificateOver(
  connection: Deno.TcpConn,
  servername: string,
  shown: Shown = {},
): Promise<string | undefined> {
  const { readable, writable } = connection;
  const socket = Duplex.fromWeb({ readable, writable } as Parameters<typeof Duplex.fromWeb>[0]);
  // A server without TLS.
  socket.on("error", () => {});
  try {
    return describe(await certificateOf({ socket }, servername, shown));
  } finally {
    socket.destroy();
    connection[Symbol.dispose]();
  }
}

function describe(certificate: Certificate | undefined): string | undefined {
  if (certificate?.valid_to === undefined) return undefined;
  const { subject, issuer, subjectaltname = "", valid_to } = certificate;
  const names = subjectaltname.replaceAll(/(DNS|IP Address):/g, "") || subject?.CN || "no name";
  const by = issuer?.CN ?? issuer?.O ?? "an unnamed issuer";
  return printable(`of ${names}, issued by ${by}, valid until ${dateOf(valid_to)}, pin ${pinOf(certificate.raw)}`);
}
