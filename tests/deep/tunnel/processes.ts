/**
 * The memory and the processor time of processes and their descendants, from `/proc`.
 *
 * @module
 */

// Of Linux, on every platform that Deno runs on.
const TICKS_PER_SECOND = 100;

/** What is read of a process. */
interface Process {
  parent: number;
  /** KiB. */
  memory: number;
  /** Seconds of this process, and of its children that have ended. */
  processorTime: number;
}

function read(id: string): Process {
  const status = Deno.readTextFileSync(`/proc/${id}/status`);
  const field = (name: string) => Number(new RegExp(`^${name}:\\s+(\\d+)`, "m").exec(status)?.[1] ?? 0);
  // The name of the program, in brackets, may contain spaces.
  const stat = Deno.readTextFileSync(`/proc/${id}/stat`).replace(/^.*\)/, "").trim().split(" ").map(Number);
  const ticks = stat.slice(11, 15).reduce((sum, each) => sum + each, 0);
  return { parent: field("PPid"), memory: field("RssAnon"), processorTime: ticks / TICKS_PER_SECOND };
}

/** Returns the memory in KiB and the processor time in seconds of processes and of their descendants. */
export function usage(ids: number[]): { memory: number; processorTime: number } {
  const processes = new Map<number, Process>();
  for (const { name } of Deno.readDirSync("/proc")) {
    if (!/^\d+$/.test(name)) continue;
    try {
      processes.set(Number(name), read(name));
    } catch {
      // The process has ended.
    }
  }
  const counts = (id: number): boolean => ids.includes(id) || (processes.has(id) && counts(processes.get(id)!.parent));
  const sum = { memory: 0, processorTime: 0 };
  for (const [id, { memory, processorTime }] of processes) {
    if (!counts(id)) continue;
    sum.memory += memory;
    sum.processorTime += processorTime;
  }
  return sum;
}
