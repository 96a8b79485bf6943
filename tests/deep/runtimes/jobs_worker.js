/**
 * Jobs of a worker of workerd: `/database?port=P` queries PostgreSQL over a stream; a WebSocket makes the worker a server
 * of the job that the path names.
 *
 * @module
 */

import { connect } from "cloudflare:sockets";
import { Session } from "@sluice/smux";
import { upgradeWebSocket } from "@sluice/smux/websocket";
import { Hono } from "hono";
import pg from "pg";
import { StreamSocket } from "../../../examples/node/socket.ts";

const encode = (text) => new TextEncoder().encode(text);

const app = new Hono().post("/:name", async (context) => context.text(`Hono: ${await context.req.text()}`));

/** Answers a stream of `PATH\nBODY` with the body of the app's response. */
async function request(stream) {
  const [, path, body] = /^(.*)\n(.*)$/s.exec(await new Response(stream.readable).text());
  const response = await app.fetch(new Request(`http://localhost${path}`, { method: "POST", body }));
  await response.body.pipeTo(stream.writable);
}

/** Joins a stream with a connection to a port. */
async function proxy(stream, port) {
  const socket = connect({ hostname: "127.0.0.1", port }, { allowHalfOpen: true });
  await Promise.all([stream.readable.pipeTo(socket.writable), socket.readable.pipeTo(stream.writable)]);
}

/** Pushes an event over a stream that this server opens. */
async function push(session) {
  await using stream = await session.openStream();
  await stream.write(encode("an event"));
}

/** Runs a query by a client whose socket is a stream. */
async function query(port) {
  const session = Session.client(connect({ hostname: "127.0.0.1", port }));
  const stream = () => new StreamSocket(session.openStream());
  const client = new pg.Client({ user: "postgres", database: "postgres", stream });
  await client.connect();
  const { rows } = await client.query("SELECT sum(n)::int AS sum FROM generate_series(1, 100) AS n");
  await client.end();
  await session.close({ drain: true });
  return rows;
}

export default {
  async fetch(incoming) {
    const { pathname, searchParams } = new URL(incoming.url);
    const port = Number(searchParams.get("port"));
    if (pathname === "/database") return Response.json(await query(port));
    if (pathname === "/push") return upgradeWebSocket(incoming, () => {}, { onSession: push });
    if (pathname === "/proxy") return upgradeWebSocket(incoming, (stream) => proxy(stream, port));
    return upgradeWebSocket(incoming, request);
  },
};
