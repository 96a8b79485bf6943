/**
 * A page with clients over WebSockets that receive bad input.
 *
 * @module
 */

import { runClient } from "../../fixtures/node/web_socket_client.js";

globalThis.run = (url) => runClient(url);
