/**
 * Values in the messages of errors: a text is not taken for a number, and an object has the name of its class.
 *
 * @module
 */
import { assertEquals, assertRejects, assertThrows } from "@std/assert";
import { Channel, connections, type Listener, serve, Session, type SessionOptions, type Stream } from "../mod.ts";
import { resumable, resumableListener } from "../resume.ts";
import { WebSocketListener } from "../websocket.ts";
import { describeType, describeValue } from "../_describe.ts";

const transport = () => ({ readable: new ReadableStream<Uint8Array>(), writable: new WritableStream<Uint8Array>() });

Deno.test("describeValue() quotes a string, and describeType() names the class of an object", () => {
  const values = ["5", 5, NaN, null, undefined, true, new Map(), [], {}, Object.create(null), transport];
  const types = ["string", "number", "number", "null", "undefined", "boolean", "Map", "Array", "Object", "object"];
  assertEquals(values.map(describeType), [...types, "function"]);
  assertEquals(values.slice(0, 7).map(describeValue), ['"5"', "5", "NaN", "null", "undefined", "true", "Map"]);
});

Deno.test("an option that is a string, such as a variable of the environment, is in quotes in the message", async () => {
  const messages: Record<string, string> = {
    version: '1 or 2, received "2"',
    maxFrameSize: 'an integer from 1 to 65535, received "2"',
    timeout: 'an integer from 1 to 2147483647 or Infinity, received "2"',
    maxStreamBuffer: 'an integer from 1 to maxReceiveBuffer, 16777216, received "2"',
  };
  for (const [name, message] of Object.entries(messages)) {
    const options = { [name]: "2" } as unknown as SessionOptions;
    assertThrows(() => Session.client(transport(), options), RangeError, `${name} must be ${message}`);
  }
  const text = "2" as unknown as number;
  assertThrows(() => new Channel({ capacity: text }), RangeError, 'received "2"');
  assertThrows(() => new WebSocketListener({ maxReceiveBuffer: "x" as never }), RangeError, 'received "x"');
  assertThrows(() => resumable(() => Promise.reject(), { maxUnacknowledged: text }), RangeError, 'received "2"');
  await assertRejects(() => new Channel().receive({ timeout: text }), RangeError, 'received "2"');
  await assertRejects(() => new Channel().receiveMany(text), RangeError, 'received "2"');
});

Deno.test("an argument of the wrong type has its class or type in the message, not its value", async () => {
  const session = Session.client(transport());
  const stream: Stream = await session.openStream();
  for (const [value, type] of [["secret", "string"], [new ArrayBuffer(1), "ArrayBuffer"], [[1], "Array"]] as const) {
    const expected = `Expected a Uint8Array, received ${type}`;
    assertEquals((await assertRejects(() => stream.write(value as never), TypeError)).message, expected);
    assertEquals((await assertRejects(() => stream.read(value as never), TypeError)).message, expected);
  }
  session.abort();
  assertThrows(() => Session.client("wss://secret" as never), TypeError, "or a stream of Node, received string");
  assertThrows(() => serve(new Map() as never, () => {}), TypeError, "with accept and close, received Map");
  const incoming = new Channel<Stream>() as never;
  assertThrows(() => Session.server(transport(), { incoming }), TypeError, "unbounded(), received Channel");
});

Deno.test("serve(), connections() and resumableListener() reject a promise of a listener, instead of accepting for ever", async () => {
  const listener = Promise.resolve() as unknown as Listener<Deno.Conn>;
  const message = "expected a listener with accept and close, received Promise";
  assertThrows(() => serve(listener, () => {}), TypeError, message);
  assertThrows(() => resumableListener(listener), TypeError, message);
  await assertRejects(() => connections(listener).next(), TypeError, message);
});
