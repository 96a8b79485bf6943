/**
 * A page that is a client over a WebSocket to the server that it came from.
 *
 * @module
 */

import { connectWebSocket } from "@sluice/smux/websocket";
import { exchangeAll } from "./exchange.js";

globalThis.runClient = async (version) =>
  await exchangeAll(await connectWebSocket(location.href.replace(/^http/, "ws"), { version }));
