/**
 * Watching the frames of a session, to debug one.
 *
 * @module
 */

import {
  type Command,
  COMMAND_NAMES,
  type CommandName,
  FIN,
  type FrameSink,
  NOP,
  PSH,
  SYN,
  UPD,
  UPDATE_LENGTH,
  type Version,
} from "./frame.ts";
import type { Address, Link } from "./transport.ts";

/**
 * A frame that a session sent or received, as the option `onFrame` reports it.
 *
 * @example Printing every frame of a session
 * ```ts
 * import { type FrameEvent, Session } from "@sluice/smux";
 * import { assertEquals } from "@std/assert";
 *
 * const lines: string[] = [];
 * function print({ direction, command, id, length }: FrameEvent) {
 *   lines.push(`${direction} ${command} ${id}, ${length} bytes`);
 * }
 *
 * const listener = Deno.listen({ port: 0 });
 * await using client = Session.client(await Deno.connect({ port: listener.addr.port }), { onFrame: print });
 * await using server = Session.server(await listener.accept());
 * const stream = await client.openStream();
 * await stream.write(new TextEncoder().encode("hello"));
 * await (await server.acceptStream()).closeWrite();
 * await stream.read(new Uint8Array(1));
 *
 * assertEquals(lines, ["sent NOP 0, 0 bytes", "sent SYN 3, 0 bytes", "sent PSH 3, 5 bytes", "received FIN 3, 0 bytes"]);
 * listener.close();
 * ```
 */
export interface FrameEvent {
  /** `"sent"` when the frame was encoded, `"received"` when its header was decoded (of an UPD, all of it). */
  direction: "sent" | "received";
  /** The command. */
  command: CommandName;
  /** Id of the stream; 0 on a NOP of Sluice's. */
  id: number;
  /** Bytes of payload. */
  length: number;
  /** On UPD: bytes of the stream that its receiver has read, modulo 2^32. */
  consumed?: number;
  /** On UPD: bytes that the sender may have under way beyond `consumed`. */
  window?: number;
  /** Where the peer is: one function may watch many sessions. Without a port while a socket of Node connects. */
  remoteAddr: Address;
}

/** Passes on what a decoder finds, and reports it and what is sent, in one order. */
export class FrameTrace implements FrameSink {
  readonly #sink: FrameSink;
  readonly #onFrame: (frame: FrameEvent) => void;
  readonly #link: Pick<Link, "remoteAddr">;
  readonly #failed: (error: unknown) => void;
  #events: Omit<FrameEvent, "remoteAddr">[] = [];

  /**
   * @param sink What the decoder's frames are for.
   * @param onFrame The application's function.
   * @param link Knows where the peer is, of a connecting socket later.
   * @param failed The function has thrown.
   */
  constructor(
    sink: FrameSink,
    onFrame: (frame: FrameEvent) => void,
    link: Pick<Link, "remoteAddr">,
    failed: (error: unknown) => void,
  ) {
    this.#sink = sink;
    this.#onFrame = onFrame;
    this.#link = link;
    this.#failed = failed;
  }

  /** A frame was encoded. */
  sent(command: Command, id: number, length: number): void {
    this.#add("sent", command, id, length);
  }

  /** A UPD was encoded. */
  sentUpdate(id: number, consumed: number, window: number): void {
    this.#add("sent", UPD, id, UPDATE_LENGTH, { consumed, window });
  }

  begin(version: Version): void {
    this.#sink.begin(version);
  }

  syn(id: number): void {
    this.#add("received", SYN, id, 0);
    this.#sink.syn(id);
  }

  fin(id: number): void {
    this.#add("received", FIN, id, 0);
    this.#sink.fin(id);
  }

  psh(id: number, length: number): void {
    this.#add("received", PSH, id, length);
    this.#sink.psh(id, length);
  }

  data(bytes: Uint8Array, start: number, end: number): void {
    this.#sink.data(bytes, start, end);
  }

  nop(id: number): void {
    this.#add("received", NOP, id, 0);
    this.#sink.nop(id);
  }

  upd(id: number, consumed: number, window: number): void {
    this.#add("received", UPD, id, UPDATE_LENGTH, { consumed, window });
    this.#sink.upd(id, consumed, window);
  }

  #add(
    direction: "sent" | "received",
    command: Command,
    id: number,
    length: number,
    update?: { consumed: number; window: number },
  ): void {
    // After the step, because the application's code must not run while frames are encoded or decoded.
    if (this.#events.push({ direction, command: COMMAND_NAMES[command]!, id, length, ...update }) === 1) {
      queueMicrotask(this.#report);
    }
  }

  readonly #report = (): void => {
    const events = this.#events;
    this.#events = [];
    try {
      for (const event of events) {
        const reporting: unknown = this.#onFrame({ ...event, remoteAddr: this.#link.remoteAddr });
        // An async function is assignable to the type, too.
        if (reporting instanceof Promise) reporting.catch(this.#failed);
      }
    } catch (error) {
      this.#failed(error);
    }
  };
}
