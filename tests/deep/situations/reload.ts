/**
 * A configuration file, and the files that it names, that change every second during a hundred downloads.
 *
 * @module
 */

import { createHash } from "node:crypto";
import { setTimeout } from "node:timers/promises";
import { hashSecret } from "../../../tunnel.ts";
import { makeCertificate } from "../../../tunnel/certificate.ts";
import { makeFolder } from "../../programs.ts";
import { pattern } from "../../support.ts";
import { check, port, type Program, type Scene, type Situation } from "./scene.ts";
import { startOrigin } from "./ways.ts";

const SECRET = "open-sesame";
const DOWNLOADS = 100;
const SIZE = 5_000_000;
// Milliseconds.
const STEP = 1000;
// Milliseconds until a change is applied or refused.
const LIMIT = 5000;
// Milliseconds that the downloads last longer than the changes.
const MORE = 5000;

const RELOADED = /^reloaded /;
const REFUSED = /^did not reload /;

/** The files of both ends, and the processes that follow them. */
class Files {
  readonly #folder: string;
  readonly #client: Record<string, unknown>;
  readonly #forwards: [main: string, extra: string];
  readonly #users: Record<string, unknown>[];
  hasExtra = false;
  hasBob = false;
  cert = "";

  constructor(
    folder: string,
    client: Record<string, unknown>,
    forwards: [main: string, extra: string],
    users: Record<string, unknown>[],
  ) {
    this.#folder = folder;
    this.#client = client;
    this.#forwards = forwards;
    this.#users = users;
  }

  /** Replaces a file in one step. */
  async put(name: string, text: string): Promise<void> {
    await Deno.writeTextFile(`${this.#folder}/.${name}`, text);
    await Deno.rename(`${this.#folder}/.${name}`, `${this.#folder}/${name}`);
  }

  async putClient(): Promise<void> {
    const forward = this.hasExtra ? this.#forwards : this.#forwards.slice(0, 1);
    await this.put("client.json", JSON.stringify({ client: { ...this.#client, forward } }, null, 2));
  }

  async putUsers(): Promise<void> {
    await this.put("users.json", JSON.stringify(this.hasBob ? this.#users : this.#users.slice(0, 1), null, 2));
  }

  async putCertificate(): Promise<void> {
    const { cert, key } = await makeCertificate(["127.0.0.1"]);
    this.cert = cert;
    // Between these two, the certificate and the key do not match.
    await this.put("cert.pem", cert);
    await this.put("key.pem", key);
  }
}

/** Makes a change, and waits until a process has printed what is expected. */
async function expect(program: Program, what: RegExp, change: () => Promise<void>): Promise<void> {
  const { length } = program.printed;
  await change();
  await program.until(what, { limit: LIMIT, skipped: length });
}

/** Whether a port forwards to the origin. */
async function isForwarded(at: number): Promise<boolean> {
  try {
    const response = await fetch(`http://127.0.0.1:${at}/hello`);
    return (await response.text()).startsWith("hello");
  } catch {
    return false;
  }
}

/** Whether a server has the certificate. */
async function hasCertificate(at: number, cert: string): Promise<boolean> {
  try {
    using connection = await Deno.connectTls({ hostname: "127.0.0.1", port: at, caCerts: [cert] });
    await connection.handshake();
    return true;
  } catch {
    return false;
  }
}

async function change(scene: Scene, time: number): Promise<string> {
  const { path: cwd } = scene.stack.use(await makeFolder("reload"));
  const [control, main, extra, target] = [port(), port(), port(), port()];
  await startOrigin(scene, target, { most: 1 });
  const secret = await hashSecret(SECRET);
  const users = ["alice", "bob"].map((name) => ({ name, secret, allow: [`${target}`] }));
  const connection = { connect: `127.0.0.1:${control}`, ca: "cert.pem", user: "alice", secret: "secret.txt" };
  const files = new Files(cwd, connection, [`${main}=${target}`, `${extra}=${target}`], users);
  await files.put("secret.txt", `${SECRET}\n`);
  await files.putCertificate();
  await files.putUsers();
  await files.putClient();
  const listen = { listen: `127.0.0.1:${control}`, users: "users.json", cert: "cert.pem", key: "key.pem" };
  await files.put("server.json", JSON.stringify({ server: listen }, null, 2));
  const server = scene.sluice("server", ["--config", "server.json"], { cwd });
  await server.until(/^listening on /);
  const client = scene.sluice("client", ["--config", "client.json"], { cwd });
  await client.until(/^listening on /);

  const url = `http://127.0.0.1:${main}/file/${SIZE}/${time + MORE}`;
  const loop = `for n in $(seq ${DOWNLOADS}); do curl -sSf ${url} | sha256sum & done; wait`;
  const downloads = scene.shell("download", loop, { cwd, most: 3 });
  await setTimeout(STEP);

  const counts = { forward: 0, users: 0, certificate: 0, invalid: 0 };
  const checkHeld = async (why: string) => {
    check(await isForwarded(main), `the forward that stays does not work after ${why}`);
    check(await isForwarded(extra) === files.hasExtra, `the other forward is wrong after ${why}`);
  };
  const steps = [
    async () => {
      counts.forward++;
      files.hasExtra = !files.hasExtra;
      await expect(client, RELOADED, () => files.putClient());
      await checkHeld("a change of the forwards");
    },
    async () => {
      counts.users++;
      files.hasBob = !files.hasBob;
      await expect(server, RELOADED, () => files.putUsers());
    },
    async () => {
      counts.certificate++;
      const old = files.cert;
      await expect(server, RELOADED, () => files.putCertificate());
      check(await hasCertificate(control, files.cert), "the server does not have the new certificate");
      check(!await hasCertificate(control, old), "the server still has the old certificate");
    },
    async () => {
      counts.invalid++;
      await expect(client, REFUSED, () => files.put("client.json", '{ "client": { "connect": '));
      await checkHeld("an invalid file");
      await expect(client, RELOADED, () => files.putClient());
    },
    async () => {
      counts.invalid++;
      await expect(server, REFUSED, () => files.put("users.json", '[{ "name": "mallory" }]'));
      await checkHeld("an invalid list of users");
      await expect(server, RELOADED, () => files.putUsers());
    },
  ];
  const began = performance.now();
  for (let n = 0; n * STEP < time; n++) {
    await steps[n % steps.length]!();
    await setTimeout(Math.max(0, began + (n + 1) * STEP - performance.now()));
  }
  scene.note(`changes: ${JSON.stringify(counts)}`);
  await downloads.ended(time + 60_000);
  const expected = createHash("sha256").update(pattern(SIZE, SIZE)).digest("hex");
  const right = downloads.printed.filter(({ text }) => text.startsWith(expected)).length;
  scene.note(`${right} of ${DOWNLOADS} downloads of ${SIZE / 1e6} MB have the right hash`);
  check(right === DOWNLOADS, `${right} of ${DOWNLOADS} downloads have the right hash`);
  check(downloads.printed.length === DOWNLOADS, "curl reported errors");
  const lost = client.printed.find(({ text }) => text.includes(" was lost"));
  check(lost === undefined, `the client printed: ${lost?.text}`);
  const total = counts.forward + counts.users + counts.certificate;
  return `${DOWNLOADS} downloads right during ${total} changes and ${counts.invalid} invalid files`;
}

/** Makes the situation of this module. */
export const reload = (time: number): Situation[] => [{
  name: `the configuration changes every second for ${time / 1000} s during ${DOWNLOADS} downloads`,
  run: (scene) => change(scene, time),
}];
