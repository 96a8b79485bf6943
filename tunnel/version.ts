/**
 * The version of the package.
 *
 * @module
 */

/** The version of the package; a test compares it with that of deno.json. */
export const VERSION = "0.1.0";
