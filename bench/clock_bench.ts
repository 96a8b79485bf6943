/**
 * The ways to let something else run, from the cheapest to the surest: what one costs, and how long two sockets take to
 * meet beside a loop that works for a millisecond between two of them. `MACROTASKS_PER_YIELD` in `_clock.ts` is chosen by these.
 */

import { clock } from "../_clock.ts";
import { LOOPBACK } from "../tests/support.ts";

const WAYS: Record<string, () => Promise<unknown>> = {
  "one pass of the event loop": () => new Promise<void>((resolve) => void clock.pass(resolve)),
  "clock.yieldToEventLoop()": () => clock.yieldToEventLoop(),
  "a timer of 0 ms": () => new Promise<void>((resolve) => void setTimeout(resolve, 0)),
};

for (const [name, yieldToEventLoop] of Object.entries(WAYS)) {
  Deno.bench(
    name,
    { group: "giving way once", baseline: name.startsWith("clock") },
    async () => void await yieldToEventLoop(),
  );
}

for (const [name, yieldToEventLoop] of Object.entries(WAYS)) {
  const options = { group: "two sockets meet beside a busy loop", baseline: name.startsWith("clock"), n: 50 };
  Deno.bench(name, options, async () => {
    using listener = Deno.listen(LOOPBACK);
    let isDone = false;
    const meeting = Promise.all([listener.accept(), Deno.connect({ ...LOOPBACK, port: listener.addr.port })]);
    meeting.then(() => isDone = true);
    while (!isDone) {
      for (const ends = performance.now() + 1; performance.now() < ends;);
      await yieldToEventLoop();
    }
    for (const connection of await meeting) connection.close();
  });
}
