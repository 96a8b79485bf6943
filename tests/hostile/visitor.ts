/**
 * The worker of a bystander: visits until it is told to end, and says how long each visit took.
 *
 * @module
 */

import { type Errand, visit } from "./bystander.ts";

const scope = self as unknown as Worker;
let isOver = false;

scope.onmessage = async ({ data }: MessageEvent<Errand | null>) => {
  if (data === null) {
    isOver = true;
    return;
  }
  try {
    do scope.postMessage(await visit(data)); while (!isOver);
    scope.postMessage(null);
  } catch (error) {
    scope.postMessage(`A visit failed: ${error}`);
  }
};
