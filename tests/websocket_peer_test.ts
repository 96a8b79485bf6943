/**
 * Bad input for sessions over the WebSockets of Deno. `node_test.ts` has the same cases for npm:ws in Node.
 *
 * @module
 */

import { runCases } from "./web_socket_cases.ts";

const END = `${import.meta.dirname}/fixtures/node/web_socket.js`;

for (const role of ["client", "server"] as const) {
  Deno.test(`Session over a WebSocket of Deno as a ${role} ends with the right error after bad input`, async (test) => {
    const step = (title: string, run: () => Promise<void>) => test.step(title, run);
    await runCases({ runtime: "Deno", role }, step, [Deno.execPath(), "run", "-A", END]);
  });
}
