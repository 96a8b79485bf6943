/**
 * A server in Node or Bun that pushes an event to each client over a stream that it opens; prints its port.
 *
 * @module
 */

import { createRequire } from "node:module";
import { Session } from "@sluice/smux";
import { webSocketConnection } from "@sluice/smux/websocket";

// Not an import, because Deno checks those of this file too.
const { WebSocketServer } = createRequire(import.meta.url)("ws");

const server = new WebSocketServer({ host: "127.0.0.1", port: 0 });
server.on("listening", () => console.log(`listening on 127.0.0.1:${server.address().port}`));
server.on("connection", async (socket) => {
  const session = Session.server(webSocketConnection(socket));
  const stream = await session.openStream();
  await stream.write(new TextEncoder().encode("an event"));
  await stream.closeWrite();
});
