/** The channel beside its peers. `deno task deep channel` measures the same in rounds, and prints the ratios. */

import { Runner } from "./channel_runner.ts";
import { scenarios } from "./channel_scenarios.ts";

const runners = await Runner.startAll((name, why) => console.log(`left out: ${name}: all, ${why}`));

for (const scenario of scenarios) {
  const count = scenario.count / 5;
  for (const runner of runners) {
    const lack = runner.lacks(scenario);
    if (lack !== undefined) {
      console.log(`left out: ${runner.name}: ${scenario.name} (${lack})`);
      continue;
    }
    Deno.bench({
      name: `${scenario.name}, ${count} times: ${runner.name}`,
      group: scenario.name,
      baseline: runner.name === "ours",
      n: 20,
      warmup: 20, // so that all code is compiled
      async fn(b) {
        await runner.prepare(scenario, count);
        b.start();
        await runner.run();
        b.end();
      },
    });
  }
}
