/** Every attack of tests/hostile, on both roles and in both versions, with small counts. */

import { AttackRun, ways } from "./hostile/attack_run.ts";
import { CASES } from "./hostile/table.ts";

for (const which of CASES) {
  for (const { role, version } of ways(which)) {
    Deno.test(`hostile: ${which.id} ${which.name} against a ${role} of version ${version}`, async () => {
      await AttackRun.run(which, role, version, false);
    });
  }
}
