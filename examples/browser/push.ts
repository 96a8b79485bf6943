/**
 * The server's side of the events: each is pushed to every page over a stream that the server opens.
 *
 * @module
 */
import { type Session, SessionClosedError } from "@sluice/smux";
import { upgradeWebSocket, WebSocketClosedError } from "@sluice/smux/websocket";

// The code with which a browser closes the WebSockets of a page that is left.
const GOING_AWAY = 1001;

const pages = new Set<Session>();

/** Answers the request of a page for its WebSocket. */
export function connectPage(request: Request): Response {
  async function onSession(session: Session): Promise<void> {
    pages.add(session);
    await session.closed.catch(() => {});
    pages.delete(session);
  }
  function onError(error: unknown): void {
    if (!(error instanceof WebSocketClosedError && error.code === GOING_AWAY)) console.error(error);
  }
  // A page only receives. Browsers throttle the timers of background pages to once a minute, which delays keepalives.
  return upgradeWebSocket(request, (stream) => stream.close(), { onSession, onError, timeout: 150_000 });
}

/** Pushes an event to every page; resolves when all of it is sent. */
export async function push(event: string): Promise<void> {
  await Promise.all(Array.from(pages, async (session) => {
    try {
      await using stream = await session.openStream();
      await stream.write(new TextEncoder().encode(event));
    } catch (error) {
      if (!(error instanceof SessionClosedError)) console.error(error);
    }
  }));
}
