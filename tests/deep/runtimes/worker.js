/**
 * A worker of workerd. `/?port=P&version=V&streams=N&peer=Go` runs a client over TCP, with a server in Go or Deno.
 * An upgrade request runs a server over its WebSocket.
 *
 * @module
 */

import { connect } from "cloudflare:sockets";
import { Session } from "@sluice/smux";
import { upgradeWebSocket } from "@sluice/smux/websocket";
import { answer, exchangeAll } from "./exchange.js";
import { askGo } from "./go_exchange.js";

export default {
  async fetch(request) {
    const { searchParams } = new URL(request.url);
    if (!searchParams.has("port")) return upgradeWebSocket(request, answer);
    const socket = connect({ hostname: "127.0.0.1", port: Number(searchParams.get("port")) });
    const session = Session.client(socket, { version: Number(searchParams.get("version")) });
    const exchange = searchParams.get("peer") === "Go" ? askGo : exchangeAll;
    return new Response(await exchange(session, Number(searchParams.get("streams"))));
  },
};
