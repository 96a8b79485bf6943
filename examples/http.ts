/**
 * HTTP over the streams of one session: a server of an unchanged Express or Hono app whose connections are streams, and
 * a client that sends all its requests at the same time: first each over a stream of its own, which is cheaper than
 * keeping a connection alive, then by an `http.Agent` that keeps at most four streams.
 *
 * ```sh
 * deno run --allow-net --allow-env --allow-read examples/http.ts server 9000 express
 * deno run --allow-net --allow-env --allow-read examples/http.ts client 9000 /one /two /three
 * bun examples/http.ts server 9000 hono # in Bun, after `npm install @hono/node-server express hono`
 * npx tsx examples/http.ts client 9000 /one /two /three # in Node
 * ```
 *
 * @module
 */
import { Agent, createServer, type IncomingMessage, request, type RequestOptions } from "node:http";
import { connect } from "node:net";
import process from "node:process";
import { text } from "node:stream/consumers";
import { finished } from "node:stream/promises";
import { getRequestListener } from "@hono/node-server";
import { serve, Session } from "@sluice/smux";
import express from "express";
import { Hono } from "hono";
import { listen } from "./node/listen.ts";
import { StreamSocket } from "./node/socket.ts";

// The types of Express bring those of Node, which conflict with those of Deno: these are the members in use.
type Request = { body: string; ip: string };
type Response = { send(body: string): void };

const expressApp = express().post("/:name", express.text(), ({ body, ip }: Request, response: Response) => {
  response.send(`Express: ${body} from ${ip}`);
});
const honoApp = new Hono().post("/:name", async (context) => context.text(`Hono: ${await context.req.text()}`));
const APPS = { express: expressApp, hono: getRequestListener(honoApp.fetch) };

/** Serves an app: each stream is a connection of an HTTP server. */
async function runServer(port: number, app: keyof typeof APPS): Promise<void> {
  const web = createServer(APPS[app]);
  // A server that does not listen closes each connection after its response in Deno.
  Object.defineProperty(web, "listening", { value: true });
  const listener = await listen(port);
  serve(listener, async (stream) => {
    const socket = new StreamSocket(stream);
    web.emit("connection", socket);
    // The HTTP server reports errors itself, by "clientError" and to the requests.
    await finished(socket).catch(() => {});
  });
  console.log(`listening on 127.0.0.1:${listener.port}`);
}

/** Sends a request; resolves when the headers of the response have arrived. */
function send(options: RequestOptions, body: string): Promise<IncomingMessage> {
  return new Promise((resolve, reject) => request(options, resolve).on("error", reject).end(body));
}

/** Requests all paths at the same time, over one connection, in both ways. */
async function runClient(port: number, paths: string[]): Promise<void> {
  await using session = Session.client(connect(port, "127.0.0.1"));
  const createConnection = () => new StreamSocket(session.openStream());
  const agent = new Agent({ keepAlive: true, maxSockets: 4 });
  agent.createConnection = createConnection;

  for (const way of [{ createConnection }, { agent }]) {
    await Promise.all(paths.map(async (path) => {
      const headers = { "content-type": "text/plain" };
      const response = await send({ ...way, method: "POST", path, headers }, `hello to ${path}`);
      console.log(`${response.statusCode} ${await text(response)}`);
    }));
  }
  agent.destroy();
  console.log(`${2 * paths.length} requests over ${session.stats().opened} streams of one connection`);
}

const [command, port = "", ...rest] = process.argv.slice(2);
const [app = ""] = rest;
const isPort = /^\d{1,5}$/.test(port) && Number(port) < 65536;

if (command === "server" && isPort && (app === "express" || app === "hono")) {
  await runServer(Number(port), app);
} else if (command === "client" && isPort && rest.length > 0) {
  await runClient(Number(port), rest);
} else {
  console.error("usage: http.ts server PORT express|hono, or http.ts client PORT PATH…");
  process.exitCode = 2;
}
