/**
 * Queries of PostgreSQL over one connection: each client of `pg` has a stream as its socket, which the server joins with
 * a connection to the database. `pg` reads the user, password and database from `PGUSER`, `PGPASSWORD` and `PGDATABASE`.
 *
 * ```sh
 * deno run --allow-net examples/tunnel.ts server 9000 localhost:5432 # beside the database
 * deno run --allow-net --allow-env examples/database.ts query 9000 'SELECT 1 AS one' 'SELECT now()'
 * bun examples/database.ts query 9000 'SELECT now()' # in Bun, after `npm install pg`
 * npx tsx examples/database.ts query 9000 'SELECT now()' # in Node
 * ```
 *
 * @module
 */
import { connect } from "node:net";
import process from "node:process";
import { Session } from "@sluice/smux";
import pg from "pg";
import { StreamSocket } from "./node/socket.ts";

const MAX_CLIENTS = 4;

/** Runs all queries at the same time, by clients that share one connection, and prints their rows. */
async function query(port: number, queries: string[]): Promise<void> {
  const session = Session.client(connect(port, "127.0.0.1"));
  const pool = new pg.Pool({ max: MAX_CLIENTS, stream: () => new StreamSocket(session.openStream()) });
  // A lost connection of an idle client; the queries report their own errors.
  pool.on("error", (error: Error) => console.error(error.message));
  try {
    await Promise.all(queries.map(async (text) => {
      const { rows } = await pool.query(text);
      console.log(`${text}: ${JSON.stringify(rows)}`);
    }));
  } finally {
    await pool.end();
    // The pool does not wait for the end of its clients.
    await session.close({ drain: true });
  }
}

const [command, port = "", ...queries] = process.argv.slice(2);
const isPort = /^\d{1,5}$/.test(port) && Number(port) < 65536;

if (command === "query" && isPort && queries.length > 0) {
  await query(Number(port), queries);
} else {
  console.error("usage: database.ts query PORT SQL…");
  process.exitCode = 2;
}
