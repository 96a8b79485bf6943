/**
 * A page: a client over a WebSocket to its own server.
 *
 * @module
 */

import { connectWebSocket } from "@sluice/smux/websocket";
import { exchangeAll } from "./exchange.js";

globalThis.runClient = async (version, streams) =>
  await exchangeAll(await connectWebSocket(location.href.replace(/^http/, "ws"), { version }), streams);
