/** Hostile peers: every attack, on both roles and in both versions, with small counts; `deno task deep hostile` has the large ones. */

import { Lab, ways } from "./hostile/lab.ts";
import { CASES } from "./hostile/table.ts";

for (const which of CASES) {
  for (const { role, version } of ways(which)) {
    Deno.test(`hostile: ${which.id} ${which.name} against a ${role} of version ${version}`, async () => {
      await Lab.run(which, role, version, false);
    });
  }
}
