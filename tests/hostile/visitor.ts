/**
 * The worker of a bystander: visits until it receives `null`, and reports the duration of each visit.
 *
 * @module
 */

import { setTimeout as delay } from "node:timers/promises";
import { type Errand, visit } from "./bystander.ts";

const scope = self as unknown as Worker;
let isOver = false;

scope.onmessage = async ({ data }: MessageEvent<[errand: Errand, pause: number] | null>) => {
  if (data === null) {
    isOver = true;
    return;
  }
  try {
    const [errand, pause] = data;
    do {
      scope.postMessage(await visit(errand));
      if (pause > 0) await delay(pause);
    } while (!isOver);
    scope.postMessage(null);
  } catch (error) {
    scope.postMessage(`A visit failed: ${error}`);
  }
};
