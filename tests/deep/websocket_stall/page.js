/**
 * A page that is a client of the server that it came from.
 *
 * @module
 */

import { stall, start, tally } from "./client.js";

globalThis.start = (job, options) => start(new WebSocket(location.href.replace(/^http/, "ws")), job, options);
globalThis.stall = stall;
globalThis.tally = tally;
