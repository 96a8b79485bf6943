/**
 * The names of client certificates.
 *
 * @module
 */

import type { Address } from "../mod.ts";
import { checkName } from "./users.ts";
import type { CertificateParts } from "./x509.ts";

/** The address of a client that has shown a certificate. A session passes it on as it is. */
export class CertifiedAddress implements Deno.NetAddr {
  readonly transport = "tcp";
  readonly hostname: string;
  readonly port: number;
  /** The name in the certificate. */
  readonly user: string;

  constructor({ hostname, port }: Pick<Deno.NetAddr, "hostname" | "port">, user: string) {
    this.hostname = hostname;
    this.port = port;
    this.user = user;
  }
}

/** Returns the name in the certificate of the client at an address; `undefined` without a certificate. */
export function certifiedUser(address: Address | undefined): string | undefined {
  return address instanceof CertifiedAddress ? address.user : undefined;
}

/**
 * Returns the name of a user in a certificate: the common name of the subject; without one, the first alternative name
 * that is a DNS name or an e-mail address.
 *
 * @throws {RangeError} It has no name, several common names, or one that cannot be that of a user.
 */
export function userOfCertificate({ commonNames, alternativeNames }: CertificateParts): string {
  if (commonNames.length > 1) throw new RangeError("the certificate must have one common name, received several");
  const name = commonNames[0] ?? alternativeNames[0];
  if (name === undefined) throw new RangeError("the certificate must have a common name, received none");
  checkName("the name of the certificate", name);
  return name;
}
