/**
 * Serves a page with eight transfers over one WebSocket: `deno run -A examples/browser/server.ts [PORT] [MB/S]`. At
 * `/events` is a page to which the server pushes events, such as `curl --data hello http://localhost:8000/push`.
 *
 * The pages import the modules of this repository; the server strips their types.
 *
 * @module
 */
import { stripTypeScriptTypes } from "node:module";
import { connectPage, push } from "./push.ts";
import { serveSession } from "./transfers.ts";

const [port = "8000", megabytesPerSecond = "6"] = Deno.args;

const readSource = (path: string) => Deno.readTextFile(new URL(path, import.meta.url));
const onListen = ({ port }: Deno.NetAddr) => console.log(`http://localhost:${port}/`);

Deno.serve({ hostname: "127.0.0.1", port: Number(port), onListen }, async (request) => {
  const { pathname } = new URL(request.url);
  if (pathname === "/" || pathname === "/events") {
    const page = await readSource(pathname === "/" ? "index.html" : "events.html");
    return new Response(page, { headers: { "content-type": "text/html" } });
  }
  if (pathname === "/smux") {
    const { socket, response } = Deno.upgradeWebSocket(request);
    serveSession(socket, Number(megabytesPerSecond));
    return response;
  }
  if (pathname === "/push") {
    if (request.method !== "POST") return connectPage(request);
    await push(await request.text());
    return new Response(null, { status: 204 });
  }

  const [, folder, name] = /^\/(sluice\/)?([a-z_]+\.ts)$/.exec(pathname) ?? [];
  if (name === undefined) return new Response("Not found", { status: 404 });
  const path = folder === undefined ? name : `../../${name}`;
  const code = stripTypeScriptTypes(await readSource(path), { mode: "transform" });
  return new Response(code, { headers: { "content-type": "text/javascript" } });
});
