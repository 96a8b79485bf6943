/**
 * One end of a session with Go over TCP, in Node or Bun.
 *
 *     node go_peer.js client VERSION PORT STREAMS    connects to a port
 *     node go_peer.js server VERSION                 prints its port, and serves one session
 *
 * Either end prints how many streams it has exchanged.
 *
 * @module
 */

import { once } from "node:events";
import { connect, createServer } from "node:net";
import process from "node:process";
import { Session } from "@sluice/smux";
import { answerGo, askGo } from "./go_exchange.js";

const HOST = "127.0.0.1";
const [role, version, port, streams] = process.argv.slice(2);
const options = { version: Number(version) };

if (role === "client") {
  console.log(await askGo(Session.client(connect(Number(port), HOST), options), Number(streams)));
} else {
  const server = createServer().listen(0, HOST);
  await once(server, "listening");
  console.log(server.address().port);
  const [socket] = await once(server, "connection");
  server.close();
  console.log(await answerGo(Session.server(socket, options)));
}
