/**
 * Reads variables of the environment.
 *
 * @module
 */

/** Returns a variable; `undefined` if it is not set, or the process has no permission to read it. */
export function readVariable(name: string): string | undefined {
  const { state } = Deno.permissions.querySync({ name: "env", variable: name });
  return state === "granted" ? Deno.env.get(name) : undefined;
}

/** Returns $SLUICE_SECRET, unless it is empty. */
export function secretOfEnvironment(): string | undefined {
  return readVariable("SLUICE_SECRET") || undefined;
}
