/**
 * Ways to yield to the event loop: the cost of one yield, and the time two sockets need to connect beside a loop that
 * works for a millisecond between two yields. `MACROTASKS_PER_YIELD` in `_clock.ts` is chosen by these benchmarks.
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
    { group: "yield once", baseline: name.startsWith("clock") },
    async () => void await yieldToEventLoop(),
  );
}

for (const [name, yieldToEventLoop] of Object.entries(WAYS)) {
  const options = { group: "connect two sockets beside a busy loop", baseline: name.startsWith("clock"), n: 50 };
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
