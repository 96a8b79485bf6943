/**
 * A worker of workerd: `/?port=P&version=V` runs a client over TCP, an upgrade request a server over its WebSocket.
 *
 * @module
 */

import { connect } from "cloudflare:sockets";
import { Session } from "@sluice/smux";
import { upgradeWebSocket } from "@sluice/smux/websocket";
import { answer, exchangeAll } from "./exchange.js";

export default {
  async fetch(request) {
    const { searchParams } = new URL(request.url);
    if (!searchParams.has("port")) return upgradeWebSocket(request, answer);
    const socket = connect({ hostname: "127.0.0.1", port: Number(searchParams.get("port")) });
    const session = Session.client(socket, { version: Number(searchParams.get("version")) });
    return new Response(await exchangeAll(session));
  },
};
