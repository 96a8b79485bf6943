/** Certificates for tests of the tunnel, made by openssl, with the chains and the mistakes that are needed. */

import { makeFolder, run } from "./programs.ts";
import { text } from "./support.ts";

/** A certificate and its key, in PEM, and the files that contain them. */
export interface Issued {
  cert: string;
  key: string;
  certFile: string;
  keyFile: string;
}

/** What a certificate contains. */
interface Request {
  /** As in "/CN=ana". */
  subject: string;
  /** Lines of extensions; default: those of a client. */
  extensions?: string[];
  /** "20200101000000Z"; default: yesterday. */
  from?: string;
  /** Default: tomorrow. */
  to?: string;
}

const CLIENT = ["basicConstraints=critical,CA:FALSE", "extendedKeyUsage=clientAuth"];
export const SERVER = [
  "basicConstraints=critical,CA:FALSE",
  "extendedKeyUsage=serverAuth",
  "subjectAltName=DNS:localhost,IP:127.0.0.1",
];
const DAY = 86_400_000;

/** Returns a time as openssl reads it, `milliseconds` from now. */
export function timeIn(milliseconds: number): string {
  return new Date(Date.now() + milliseconds).toISOString().replaceAll(/[-:T]|\.\d+/g, "");
}

/** Makes a CA in a folder of its own. */
export async function makeAuthority(name = "test CA") {
  const folder = await makeFolder("authority");
  const file = (name: string) => `${folder.path}/${name}`;
  const newKey = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
  await run("openssl", [
    ...["req", "-x509", ...newKey, "-keyout", file("ca.key"), "-out", file("ca.pem"), "-subj", `/CN=${name}`],
  ]);
  await Deno.writeTextFile(file("index"), "");
  await Deno.writeTextFile(file("index.attr"), "unique_subject = no\n");
  await Deno.writeTextFile(file("serial"), "01\n");
  await Deno.writeTextFile(
    file("ca.cnf"),
    `[ca]\ndefault_ca=d\n[d]\ndatabase=${file("index")}\nserial=${file("serial")}\nnew_certs_dir=${folder.path}\n` +
      "default_md=sha256\npolicy=p\n[p]\ncommonName=optional\norganizationName=optional\n",
  );
  let count = 0;
  const issue = async ({ subject, extensions = CLIENT, from, to }: Request): Promise<Issued> => {
    const n = ++count;
    const [keyFile, certFile] = [file(`${n}.key`), file(`${n}.pem`)];
    await Deno.writeTextFile(file(`${n}.ext`), `${extensions.join("\n")}\n`);
    await run("openssl", ["req", "-new", ...newKey, "-keyout", keyFile, "-out", file(`${n}.csr`), "-subj", subject]);
    await run("openssl", [
      ...["ca", "-batch", "-config", file("ca.cnf"), "-cert", file("ca.pem"), "-keyfile", file("ca.key"), "-notext"],
      ...["-in", file(`${n}.csr`), "-out", certFile, "-extfile", file(`${n}.ext`), "-preserveDN"],
      ...["-startdate", from ?? timeIn(-DAY), "-enddate", to ?? timeIn(DAY)],
    ]);
    return { cert: await Deno.readTextFile(certFile), key: await Deno.readTextFile(keyFile), certFile, keyFile };
  };
  return {
    cert: await Deno.readTextFile(file("ca.pem")),
    certFile: file("ca.pem"),
    issue,
    [Symbol.asyncDispose]: () => folder[Symbol.asyncDispose](),
  };
}

/** Returns the pin of a certificate, as openssl computes it. */
export async function pinByOpenssl(certFile: string): Promise<string> {
  const publicKey = await run("openssl", ["x509", "-in", certFile, "-noout", "-pubkey"]);
  const der = await run("openssl", ["pkey", "-pubin", "-outform", "DER"], { input: publicKey });
  const hash = await run("openssl", ["dgst", "-sha256", "-binary"], { input: der });
  return text(await run("openssl", ["base64"], { input: hash })).trim();
}
