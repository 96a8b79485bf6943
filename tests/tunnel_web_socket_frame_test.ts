/** The framing of WebSockets: the codec, and a connection over real sockets with every bad input. */

import { assert, assertEquals, assertInstanceOf, assertRejects } from "@std/assert";
import { concat } from "@std/bytes";
import fc from "fast-check";
import { WebSocketClosedError } from "../websocket.ts";
import { WebSocketConnection } from "../tunnel/web_socket.ts";
import {
  applyMask,
  BINARY,
  CLOSE,
  CONTINUATION,
  encodeClose,
  encodeFrame,
  FrameDecoder,
  MAX_HEADER,
  PING,
  PONG,
  TEXT,
} from "../tunnel/web_socket_frame.ts";
import { bytes, memoryPair, pattern, readAll, readExactly, tcpPair, text, writeAll } from "./support.ts";
import { promptly } from "./tunnel_support.ts";

const RUNS = Number(Deno.env.get("PROPERTY_RUNS") ?? 300);

/** Encodes a frame. */
function frame(opcode: number, payload: Uint8Array, isMasked = false, isFinal = true): Uint8Array {
  const target = new Uint8Array(payload.length + MAX_HEADER);
  const encoded = target.slice(0, encodeFrame(target, opcode, payload, isMasked));
  if (!isFinal) encoded[0]! &= 0x7f;
  return encoded;
}

/** Decodes frames in parts of these sizes, which are repeated. */
function decode(decoder: FrameDecoder, encoded: Uint8Array, sizes: readonly number[]): Uint8Array {
  const parts: Uint8Array[] = [];
  for (let at = 0, n = 0; at < encoded.length; n++) {
    const part = encoded.slice(at, at + sizes[n % sizes.length]!);
    at += part.length;
    parts.push(part.subarray(0, decoder.decode(part)));
  }
  return concat(parts);
}

Deno.test("FrameDecoder: any fragmentation, split and control frames in between decode to the same bytes", () => {
  const piece = fc.record({
    payload: fc.uint8Array({ maxLength: 300 }),
    isLast: fc.boolean(),
    control: fc.option(fc.record({ opcode: fc.constantFrom(PING, PONG), payload: fc.uint8Array({ maxLength: 125 }) })),
  });
  const property = fc.property(
    fc.array(piece, { maxLength: 12 }),
    fc.array(fc.integer({ min: 1, max: 400 }), { minLength: 1, maxLength: 8 }),
    fc.boolean(),
    (pieces, sizes, isMasked) => {
      let isStart = true;
      let ping: Uint8Array | undefined;
      const frames = pieces.flatMap(({ payload, isLast, control }, n) => {
        const isFinal = isLast || n === pieces.length - 1;
        const data = frame(isStart ? BINARY : CONTINUATION, payload, isMasked, isFinal);
        isStart = isFinal;
        if (control === null) return [data];
        if (control.opcode === PING) ping = control.payload;
        return [data, frame(control.opcode, control.payload, isMasked)];
      });
      const decoder = new FrameDecoder(isMasked);
      const encoded = concat([...frames, frame(CLOSE, encodeClose(1000, "bye"), isMasked), bytes("after")]);
      assertEquals(decode(decoder, encoded, sizes), concat(pieces.map(({ payload }) => payload)));
      assertEquals([decoder.closed, decoder.failed], [{ code: 1000, reason: "bye" }, undefined]);
      assertEquals(decoder.ping, ping);
    },
  );
  fc.assert(property, { numRuns: RUNS });
});

Deno.test("applyMask() equals the definition, at any alignment and phase", () => {
  const property = fc.property(
    fc.uint8Array({ maxLength: 40 }),
    fc.uint8Array({ minLength: 4, maxLength: 4 }),
    fc.integer({ min: 0, max: 7 }),
    fc.integer({ min: 0, max: 3 }),
    (plain, key, offset, phase) => {
      const memory = new Uint8Array(plain.length + offset);
      memory.set(plain, offset);
      applyMask(memory.subarray(offset), key, phase);
      assertEquals(memory.subarray(offset), plain.map((byte, n) => byte ^ key[(n + phase) % 4]!));
    },
  );
  fc.assert(property, { numRuns: RUNS });
});

Deno.test("encodeFrame() uses each length of header at its bounds, and a key of its own for each frame", () => {
  for (
    const [length, header] of [[0, 2], [125, 2], [126, 4], [65535, 4], [65536, 10]] as const
  ) {
    for (const isMasked of [false, true]) {
      const payload = pattern(length, 7);
      const encoded = frame(BINARY, payload, isMasked);
      assertEquals(encoded.length, header + length + (isMasked ? 4 : 0));
      assertEquals(decode(new FrameDecoder(isMasked), encoded, [10_000]), payload);
    }
  }
  const keys = new Set(Array.from({ length: 20 }, () => frame(BINARY, bytes("x"), true).subarray(2, 6).toHex()));
  assertEquals(keys.size, 20);
});

const hex = (digits: string) => Uint8Array.fromHex(digits.replaceAll(" ", ""));

/** Frames that a decoder of unmasked frames rejects. */
const BAD: [what: string, frames: Uint8Array, code: number, reason: string][] = [
  ["a masked frame of a server", frame(BINARY, bytes("x"), true), 1002, "expected an unmasked frame"],
  ["text", frame(TEXT, bytes("x")), 1003, "expected binary messages, received text"],
  ["reserved bit 1", hex("c2 01 78"), 1002, "expected a frame without reserved bits, received first byte 0xc2"],
  ["reserved bit 2", hex("a2 01 78"), 1002, "reserved bits"],
  ["reserved bit 3", hex("92 01 78"), 1002, "reserved bits"],
  ["reserved data opcode", hex("83 01 78"), 1002, "expected a known opcode, received 3"],
  ["reserved control opcode", hex("8b 01 78"), 1002, "expected a known opcode, received 11"],
  ["a fragmented ping", hex("09 01 78"), 1002, "expected a whole control frame, received a fragment"],
  ["a fragmented close", hex("08 02 03e8"), 1002, "a whole control frame"],
  ["a long ping", hex("89 7e 007e"), 1002, "expected a control frame of at most 125 bytes"],
  ["a close of 64-bit length", hex("88 7f"), 1002, "expected a control frame of at most 125 bytes"],
  ["a length with its top bit set", hex("82 7f 8000000000000000"), 1002, "expected a length below 2 ** 63"],
  ["a length that no number holds", hex("82 7f 4000000000000000"), 1009, "expected a length below 2 ** 53"],
  ["a continuation first", hex("80 01 78"), 1002, "expected the start of a message, received a continuation"],
  ["a message in a message", hex("02 01 78 82 01 78"), 1002, "expected the rest of a message, received another"],
  ["a close in a message", hex("02 01 78 88 00"), 1002, "expected the rest of a message, received a close frame"],
  ["a close of one byte", hex("88 01 03"), 1002, "expected a close frame with a code, received one byte"],
  ["a close reason that is not UTF-8", hex("88 03 03e8 ff"), 1002, "expected a close reason in UTF-8"],
  ...[0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65535].map((code) =>
    [
      `close code ${code}`,
      frame(CLOSE, new Uint8Array([code >> 8, code & 255])),
      1002,
      `expected a valid close code, received ${code}`,
    ] as [string, Uint8Array, number, string]
  ),
];
for (const [what, frames, code, reason] of BAD) {
  Deno.test(`WebSocketConnection rejects ${what}, after the bytes before it`, async () => {
    for (const size of [1, 2, 100]) {
      const decoder = new FrameDecoder(false);
      decode(decoder, frames, [size]);
      assertEquals(decoder.failed?.code, code);
      assert(decoder.failed!.reason.includes(reason), decoder.failed!.reason);
    }
    const [near, far] = await tcpPair();
    const socket = new WebSocketConnection(near, "client", new Uint8Array());
    await writeAll(far, concat([frame(BINARY, bytes("before")), frames, frame(BINARY, bytes("after"))]));
    assertEquals(text(await readExactly(socket, 6)), "before");
    // A continuation makes bytes of the first frame.
    const error = await assertRejects(() => promptly(readAll(socket)), WebSocketClosedError, reason);
    assertEquals(error.code, code);
    await assertRejects(() => socket.write(bytes("x")), WebSocketClosedError, reason);
    // The peer receives the code and the reason.
    const decoder = new FrameDecoder(true);
    const answer = new Uint8Array(1000);
    decoder.decode(answer.subarray(0, (await far.read(answer))!));
    assertEquals(decoder.closed?.code, code);
    assert(decoder.closed!.reason.includes(reason));
    socket.close();
    far.close();
  });
}

Deno.test("WebSocketConnection of a server rejects an unmasked frame", async () => {
  const [near, far] = await tcpPair();
  const socket = new WebSocketConnection(near, "server", new Uint8Array());
  await writeAll(far, frame(BINARY, bytes("x")));
  const error = await assertRejects(() => readAll(socket), WebSocketClosedError, "expected a masked frame");
  assertEquals(error.code, 1002);
  socket.close();
  far.close();
});

/** Both ends of a WebSocket over a connection in memory, which writes in parts. */
function pair(capacity?: number): [WebSocketConnection, WebSocketConnection] {
  const [near, far] = memoryPair(capacity);
  return [
    new WebSocketConnection(near, "client", new Uint8Array()),
    new WebSocketConnection(far, "server", new Uint8Array()),
  ];
}

Deno.test("WebSocketConnection transfers bytes both ways over a connection that writes 7 bytes at a time", async () => {
  const [client, server] = pair(7);
  const sent = pattern(60_000, 3);
  const send = async (socket: WebSocketConnection) => {
    await writeAll(socket, sent);
    await socket.closeWrite();
  };
  const [there, back] = await Promise.all([readAll(server), readAll(client), send(client), send(server)]);
  assertEquals(there, sent);
  // The close frame of the client ends the server's writing too, but not before its own.
  assertEquals(back, sent.slice(0, back.length));
});

Deno.test("WebSocketConnection: a clean end is a close frame with code 1000 or without one, and answered", async () => {
  for (const [payload, answered] of [[hex("03e8"), "03e8"], [hex("03e8 627965"), "03e8"], [hex(""), ""]] as const) {
    const [near, far] = await tcpPair();
    const socket = new WebSocketConnection(near, "server", new Uint8Array());
    await writeAll(far, concat([frame(BINARY, bytes("last"), true), frame(CLOSE, payload, true)]));
    assertEquals(text(await readAll(socket)), "last");
    assertEquals(await socket.read(new Uint8Array(1)), null);
    socket.close();
    assertEquals((await readAll(far)).toHex(), `88${answered === "" ? "00" : `02${answered}`}`);
    const error = await assertRejects(() => socket.write(bytes("x")));
    assert(error instanceof WebSocketClosedError ? error.code === 1000 : true);
    far.close();
  }
});

Deno.test("WebSocketConnection: any other close code is an error with its code and its printable reason", async () => {
  for (const code of [1001, 1006 + 5, 1008, 3000, 4999]) {
    const [near, far] = await tcpPair();
    const socket = new WebSocketConnection(near, "server", new Uint8Array());
    await writeAll(far, frame(CLOSE, encodeClose(code, "why\u001b[31m"), true));
    const error = await assertRejects(() => readAll(socket), WebSocketClosedError, `code ${code}: why?[31m`);
    assertEquals(error.code, code);
    assertInstanceOf(await socket.write(bytes("x")).catch((error) => error), WebSocketClosedError);
    socket.close();
    far.close();
  }
});

Deno.test("WebSocketConnection: an end without a close frame is an error, anywhere, and after closeWrite() too", async () => {
  const whole = frame(BINARY, bytes("whole"), true);
  for (const isClosed of [false, true]) {
    for (let length = 0; length <= whole.length; length++) {
      const [near, far] = await tcpPair();
      const socket = new WebSocketConnection(near, "server", new Uint8Array());
      if (isClosed) await socket.closeWrite();
      await writeAll(far, whole.subarray(0, length));
      far.close();
      const error = await assertRejects(() => readAll(socket), WebSocketClosedError);
      assertEquals(error.code, 1006);
      socket.close();
    }
  }
});

Deno.test("WebSocketConnection: a connection below that fails is an error with code 1006 and its cause", async () => {
  const reset = new Deno.errors.ConnectionReset("Connection reset by peer");
  const inner = { read: () => Promise.reject(reset), write: () => Promise.reject(reset), close() {} };
  for (const operation of ["read", "write"] as const) {
    const socket = new WebSocketConnection(inner, "client", new Uint8Array());
    const error = await assertRejects(() => socket[operation](new Uint8Array(1)), WebSocketClosedError, "1006");
    assertEquals([error.code, error.cause], [1006, reset]);
  }
});

Deno.test("WebSocketConnection.close() sends code 1001, so that the peer does not take it for a clean end", async () => {
  const [near, far] = await tcpPair();
  const [socket, peer] = [
    new WebSocketConnection(near, "client", new Uint8Array()),
    new WebSocketConnection(far, "server", new Uint8Array()),
  ];
  await socket.write(bytes("half"));
  socket.close();
  socket.close();
  const error = await assertRejects(() => readAll(peer), WebSocketClosedError, "1001: aborted");
  assertEquals(error.code, 1001);
  await assertRejects(() => socket.read(new Uint8Array(1)));
  await assertRejects(() => socket.write(new Uint8Array(1)));
  peer.close();
});

Deno.test("WebSocketConnection answers pings, the newest if the peer does not read, and ignores pongs", async () => {
  const [near, far] = memoryPair(1000);
  const socket = new WebSocketConnection(near, "server", new Uint8Array());
  // Blocks the writing direction in the middle of a frame.
  const writing = socket.write(pattern(5000));
  const reading = readExactly(socket, 4);
  for (let n = 0; n < 3000; n++) {
    await writeAll(far, concat([frame(PING, bytes(`${n}`), true), frame(PONG, bytes("?"), true)]));
  }
  await writeAll(far, frame(BINARY, bytes("last"), true));
  assertEquals(text(await reading), "last");
  await readExactly(far, 5000 + 4);
  assertEquals(await writing, 5000);
  assertEquals(await readExactly(far, 6), frame(PONG, bytes("2999")));
  // Nothing else was queued.
  await socket.write(bytes("next"));
  assertEquals(await readExactly(far, 6), frame(BINARY, bytes("next")));
});

Deno.test("WebSocketConnection.closeWrite() lets reads go on until the peer has ended", async () => {
  const [client, server] = pair();
  await client.write(bytes("request"));
  await client.closeWrite();
  await assertRejects(() => client.write(bytes("x")), WebSocketClosedError);
  // Sent before the server has read the close frame.
  await server.write(bytes("response"));
  assertEquals(text(await readAll(server)), "request");
  assertEquals(text(await readAll(client)), "response");
});

Deno.test("WebSocketConnection: reads that do not happen pause the peer, and a message is never held", async () => {
  const [client, server] = pair(1000);
  const writing = writeAll(client, pattern(100_000, 9));
  let isWritten = false;
  writing.then(() => isWritten = true);
  const p = new Uint8Array(100);
  for (let read = 0; read < 90_000;) {
    read += (await server.read(p))!;
    assertEquals(isWritten, false);
  }
  const rest = readAll(server);
  await writing;
  await client.closeWrite();
  await rest;
});

Deno.test("WebSocketConnection: a failed write below fails every later write", async () => {
  const [near, far] = await tcpPair();
  const socket = new WebSocketConnection(near, "client", new Uint8Array());
  far.close();
  const error = await assertRejects(async () => {
    for (;;) await socket.write(new Uint8Array(100_000));
  }, WebSocketClosedError);
  assertEquals(await assertRejects(() => socket.write(new Uint8Array(1))), error);
  socket.close();
});

Deno.test("WebSocketConnection reads the bytes that followed the handshake first", async () => {
  const [near, far] = await tcpPair();
  const first = frame(BINARY, bytes("first"));
  const socket = new WebSocketConnection(near, "client", first.slice(0, 4));
  await writeAll(far, concat([first.subarray(4), frame(BINARY, bytes("second")), frame(CLOSE, encodeClose(1000))]));
  const p = new Uint8Array(3);
  assertEquals(text(p.subarray(0, (await socket.read(p))!)), "f");
  assertEquals(text(await readAll(socket)), "first second".slice(1).replace(" ", ""));
  socket.close();
  far.close();
});
