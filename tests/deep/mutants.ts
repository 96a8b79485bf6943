/**
 * Plants known bugs, one at a time, in a copy of the repository, and looks whether the tests find them: first the
 * simulation, then the quick tests that ought to.
 *
 * @module
 */

import { cp } from "node:fs/promises";
import { makeFolder } from "../programs.ts";
import { anyText, integer, parse } from "./shared/options.ts";

/** What it does. */
export const description = "Plants bugs in a copy and looks whether the tests find them: [--seeds 4000] [--only WORDS]";

/** One bug, and where it is planted. */
export interface Mutant {
  /** Says the bug. */
  name: string;
  file: string;
  /** This text, which must stand in the file exactly once, becomes the other. */
  from: string;
  to: string;
  /** The quick tests to ask when the simulation sees nothing. */
  tests?: string[];
}

/** The bugs. */
export const MUTANTS: Mutant[] = [
  {
    name: "the abort of a web stream cuts a write of the stream as well",
    file: "stream.ts",
    from: "    if (this.#abortable !== signal) return;\n",
    to: "",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "frames that are coalesced wait for the whole pass",
    file: "outgoing.ts",
    from: "    return count % FRAMES_PER_LOOK === 0 && ",
    to: "    return count < 0 && ",
    tests: ["outgoing_test.ts"],
  },
  {
    name: "a single reader is read for as if it were several",
    file: "session.ts",
    from: "link.read(count, isShared);",
    to: "link.read(count, true);",
    tests: ["transport_test.ts"],
  },
  {
    name: "a buffer is given away whose rest is still to be decoded",
    file: "stream.ts",
    from: " && this.#host.isGiven(chunk) ? chunk",
    to: " ? chunk",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "a window grows though the sender did not wait for credit",
    file: "window.ts",
    from: "    if (waited >= roundTrip * WAITED) {\n",
    to: "    if (waited >= 0) {\n",
    tests: ["window_test.ts"],
  },
  {
    name: "bytes that stand in a queue shrink no window",
    file: "window.ts",
    from: "    } else if (roundTrip > pool.roundTrip + QUEUED) {\n",
    to: "    } else if (roundTrip < 0) {\n",
    tests: ["window_test.ts"],
  },
  {
    name: "a window that shrinks is not counted for what it promised",
    file: "window.ts",
    from: "Math.min(this.#window, Math.max(this.#renewed, promised))",
    to: "this.#renewed",
    tests: ["window_test.ts", "properties_test.ts"],
  },
  {
    name: "an idle stream keeps its growth",
    file: "window.ts",
    from: "    if (this.#window < window) this.#pool.reclaim();\n",
    to: "",
    tests: ["window_test.ts"],
  },
  {
    name: "answers wait until the transport is read again",
    file: "session.ts",
    from: "          if (this.#reading > 0) await this.#served();\n",
    to: "",
    tests: ["session_test.ts"],
  },
  {
    name: "a cut chunk of a web stream counts only what had to wait",
    file: "stream.ts",
    from: "    return this.#writeRest(p, count, signal, isListened, this.#begun);\n",
    to: "    return this.#writeRest(p.subarray(count), 0, signal, isListened, this.#begun);\n",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "the next read of the transport does not wait for the readers that were served",
    file: "session.ts",
    from: "        if (--this.#reading === 0) queueMicrotask(this.#goOn);\n",
    to: "        if (this.#reading-- > 0) queueMicrotask(this.#goOn);\n",
    tests: ["session_test.ts"],
  },
  {
    name: "a reader that does not read again holds back the transport",
    file: "session.ts",
    from: "    this.#serving ??= clock.pass(this.#passed);\n",
    to: "    this.#serving ??= {};\n",
    tests: ["session_test.ts"],
  },
  {
    name: "frames of one pass of the event loop leave one by one",
    file: "outgoing.ts",
    from: "      this.#coalescing ??= clock.pass(this.#passed);\n",
    to: "      queueMicrotask(this.#flush);\n",
    tests: ["outgoing_test.ts"],
  },
  {
    name: "FIN overtakes data that waits",
    file: "stream.ts",
    from:
      "    if (this.#isWriting) await (this.#writeTurns ??= new Channel()).receive();\n    this.#isWriting = true;\n",
    to: "    this.#isWriting = true;\n",
  },
  {
    name: "a stream is registered only after its SYN has left",
    file: "session.ts",
    from: "    this.#streams.add(core);\n" +
      "    if (!this.#outgoing.tryFrame(SYN, core.id, NOTHING, 0, 0)) await this.#waitToOpen(core, signal);\n",
    to: "    if (!this.#outgoing.tryFrame(SYN, core.id, NOTHING, 0, 0)) await this.#waitToOpen(core, signal);\n" +
      "    await this.#outgoing.flushed();\n    this.#streams.add(core);\n",
  },
  {
    name: "tiny frames are not merged",
    file: "stream.ts",
    from: "    this.#append(bytes, start, end);\n    return false;\n",
    to: "    this.#pushTail();\n    this.#pushChunk(bytes.slice(start, end));\n    return false;\n",
    tests: ["stream_test.ts"],
  },
  {
    name: "bytes sent are compared without wrapping",
    file: "window.ts",
    from: "if (((this.#sent - consumed) | 0) < 0) return undefined;",
    to: "if (this.#sent - consumed < 0) return undefined;",
    tests: ["window_test.ts"],
  },
  {
    name: "limits are compared without wrapping",
    file: "window.ts",
    from: "return ((limit - this.#limit) | 0) > 0 ? limit : this.#limit;",
    to: "return limit > this.#limit ? limit : this.#limit;",
    tests: ["window_test.ts"],
  },
  {
    name: "the read loop waits for a place to accept",
    file: "session.ts",
    from: "return this.#windows.unread >= this.#settings.maxReceiveBuffer ||",
    to: "return this.#accepting.size >= this.#settings.acceptBacklog ||\n" +
      "      this.#windows.unread >= this.#settings.maxReceiveBuffer ||",
  },
  {
    name: "close() credits what it drops with a late UPD",
    file: "stream.ts",
    from: "    this.#drop();\n    this.#receiveWindow?.close();\n",
    to: "    this.#credited(this.#drop());\n    this.#receiveWindow?.close();\n",
  },
  {
    name: "UPD goes on after the peer's FIN",
    file: "stream.ts",
    from: "    this.#receiveWindow?.close();\n    // A writer that waits",
    to: "    // A writer that waits",
  },
  {
    name: "lost wake-up: a UPD does not wake the writer",
    file: "stream.ts",
    from: "      this.#starvedFrom = undefined;\n      this.#credit?.trySend();\n",
    to: "      this.#starvedFrom = undefined;\n",
  },
  {
    name: "lost wake-up: reading does not resume when there is room",
    file: "session.ts",
    from:
      "    if (stream.unread === 0 && this.#holding.size > 0) this.#holding.delete(stream);\n    this.#mayReadAgain();\n",
    to: "    if (stream.unread === 0 && this.#holding.size > 0) this.#holding.delete(stream);\n",
  },
  {
    name: "lost wake-up: the next read in turn",
    file: "stream.ts",
    from: "this.#isReading = this.#readTurns?.trySend() ?? false;",
    to: "this.#isReading = false;",
  },
  {
    name: "lost wake-up: the next write in turn",
    file: "stream.ts",
    from: "this.#isWriting = this.#writeTurns?.trySend() ?? false;",
    to: "this.#isWriting = false;",
  },
  {
    name: "lost wake-up: an open before the version is known",
    file: "session.ts",
    from: "    while (this.#versionKnown?.trySend());\n",
    to: "    this.#versionKnown?.trySend();\n",
  },
  {
    name: "credit is withheld beyond the window",
    file: "window.ts",
    from: "!isLow && since < Math.min(this.#renewed / 2, LONGEST_SILENCE)",
    to: "since < this.#renewed * 2",
  },
  {
    name: "data is sent without counting against the credit",
    file: "stream.ts",
    from: "      this.#sendWindow?.spend(count);\n      at += count;\n    }\n    return at;\n",
    to: "      at += count;\n    }\n    return at;\n",
  },
  {
    name: "close() after closeWrite() sends FIN twice",
    file: "stream.ts",
    from: "      if (this.#finished) {\n        this.#leave();\n      } else {\n        this.#owesFin = true;\n",
    to: "      if (this.#finished) this.#leave();\n      {\n        this.#owesFin = true;\n",
  },
  {
    name: "the end of the transport is taken for FIN",
    file: "session.ts",
    from: "      core.fail(failure);\n      this.#streams.delete(core);\n",
    to: "      if (isClean) core.receiveFin();\n      core.settle();\n      core.fail(failure);\n" +
      "      this.#streams.delete(core);\n",
  },
  {
    name: "close() does not release what is unread",
    file: "stream.ts",
    from: "    if (count > 0) this.#host.release(this, count);\n    return count;\n",
    to: "    return count;\n",
  },
  {
    name: "a promised limit goes back",
    file: "window.ts",
    from: "return ((limit - this.#limit) | 0) > 0 ? limit : this.#limit;",
    to: "return (this.consumed + Math.min(this.#window, this.#pool.first)) >>> 0;",
    tests: ["window_test.ts"],
  },
  {
    name: "a UPD that goes back is believed",
    file: "window.ts",
    from: "    if (((consumed - this.#consumed) | 0) < 0) return false;\n",
    to: "",
  },
  {
    name: "a partial transport write is taken for whole",
    file: "outgoing.ts",
    from: "          if (at === length) break;\n",
    to: "          if (at > 0) break;\n",
  },
  {
    name: "a second SYN makes a second stream",
    file: "session.ts",
    from: "    if (this.#streams.get(id) !== undefined) return this.#flood.uselessFrame();\n",
    to: "",
  },
  {
    name: "a read that is filled in part is not settled at the end of the batch",
    file: "stream.ts",
    from: "      this.#settleLater();\n      if (stop === end) return false;\n",
    to: "      if (this.#filled === into.length) this.#settleLater();\n      if (stop === end) return false;\n",
  },
  {
    name: "the keepalive timer is not set again",
    file: "session.ts",
    from: "    this.#arm(this.#checkStalled(now));\n    this.#schedule();\n",
    to: "    this.#arm(this.#checkStalled(now));\n",
  },
  {
    name: "a refusal is counted but never sent",
    file: "session.ts",
    from: "    if (this.#refusals.length > 0 || !this.#outgoing.tryControl(FIN, id)) this.#refusals.push(id);\n",
    to: "",
  },
  {
    name: "the session's end leaves a reader waiting",
    file: "stream.ts",
    from: "    this.#sender?.close();\n    this.settle();\n",
    to: "    this.#sender?.close();\n",
  },
  {
    name: "the session's end leaves a writer waiting for credit",
    file: "stream.ts",
    from: "    this.#credit?.close();\n    this.#sender?.close();\n    this.settle();\n",
    to: "    this.#sender?.close();\n    this.settle();\n",
  },
  {
    name: "another version is taken",
    file: "frame.ts",
    from: "    } else if (version !== this.#version) {\n",
    to: "    } else if (version !== 1 && version !== 2) {\n",
  },
  {
    name: "the length of SYN is not checked",
    file: "frame.ts",
    from: "    if (command !== PSH) {\n",
    to: "    if (command !== PSH && command !== SYN) {\n",
  },
  {
    name: "an aborted write hides the bytes it sent",
    file: "stream.ts",
    from: "      if (isAborted && at > 0) return at;\n",
    to: "",
  },
  {
    name: "a write that the session's close cut is ended as if whole",
    file: "stream.ts",
    from: "      if (at < p.length && this.#ending !== undefined) this.#wasCut = true;\n",
    to: "",
    tests: ["rules_test.ts"],
  },
  {
    name: "close() of a session does not wait for what was written",
    file: "session.ts",
    from: "      await this.#outgoing.flushed();\n",
    to: "",
  },
  {
    name: "close() of a session does not wait for the peer",
    file: "session.ts",
    from: "      this.#quietFrom = clock.now();\n      this.#quietBytes",
    to: "      this.#end({});\n      this.#quietBytes",
  },
  {
    name: "discarded bytes are not credited",
    file: "stream.ts",
    from: "      this.#credited(end - start);\n      return false;\n",
    to: "      return false;\n",
    tests: ["stream_test.ts"],
  },
  {
    name: "maxStreams is not kept",
    file: "session.ts",
    from: "if (this.#isClosing || this.#remoteStreams >= this.#settings.maxStreams) return this.#refuse(id);",
    to: "if (this.#isClosing) return this.#refuse(id);",
  },
  {
    name: "a rest outlives the session",
    file: "turn.ts",
    from: "    clock.clearTimer(this.#timer);\n",
    to: "",
    tests: ["turn_test.ts"],
  },
  {
    name: "a write that waited does not begin a new turn",
    file: "turn.ts",
    from: "    if (!this.#hasSettled) this.#began = Infinity;\n",
    to: "",
    tests: ["turn_test.ts"],
  },
  {
    name: "the timer outlives the session",
    file: "session.ts",
    from: "    clock.clearTimer(this.#timer);\n    if (isClean",
    to: "    if (isClean",
  },
  {
    name: "after a freeze close() takes the peer for quiet whose bytes wait in the socket",
    file: "session.ts",
    from: "    this.#quietFrom = now;\n    this.#outgoing.excuse(",
    to: "    this.#outgoing.excuse(",
    tests: ["rules_test.ts"],
  },
  {
    name: "two sessions that hold each other back never find out that the other is gone",
    file: "session.ts",
    from: "    return Math.max(this.#heardAt, this.#outgoing.stalledSince ?? Infinity);\n",
    to: "    return Infinity;\n",
    tests: ["rules_test.ts"],
  },
  {
    name: "a write that stalled before reading was held back ends the session at once",
    file: "session.ts",
    from: "    return Math.max(this.#heardAt, this.#outgoing.stalledSince ?? Infinity);\n",
    to: "    return this.#outgoing.stalledSince ?? Infinity;\n",
    tests: ["rules_test.ts"],
  },
  {
    name: "a freeze uses up the timeout of close()",
    file: "session.ts",
    from:
      "this.#closingFrom = this.#closingMovedTo = move(this.#closingFrom, this.#closingMovedTo, this.#closeTimeout);",
    to: "",
    tests: ["rules_test.ts"],
  },
  {
    name: "a connection that was accepted while the server was stopped becomes a session",
    file: "serve.ts",
    from: "      if (stopping.signal.aborted) {\n",
    to: "      if (options.signal === null) {\n",
    tests: ["serve_test.ts"],
  },
  {
    name: "the buffer that is being decoded is given back",
    file: "session.ts",
    from: "        if (chunk.buffer !== this.#decoding) this.#link.spent(chunk);\n",
    to: "        this.#link.spent(chunk);\n",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "a stream is handed over before it is in the table",
    file: "session.ts",
    from: "    this.#streams.add(core);\n    this.#remoteStreams++;\n    if (!accepting.trySend(core.stream)) {\n",
    to: "    const isAccepted = accepting.trySend(core.stream);\n    this.#streams.add(core);\n" +
      "    this.#remoteStreams++;\n    if (!isAccepted) {\n",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "a read that has bytes is given up by its signal",
    file: "stream.ts",
    from: "        if (this.#filled > 0) return this.settle();\n",
    to: "",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "writes that try again after a timeout starve all else",
    file: "stream.ts",
    from: "Math.max(begun, since) + timeout",
    to: "since + timeout",
    tests: ["rules_test.ts"],
  },
  {
    name: "a process that is always late judges nobody",
    file: "session.ts",
    from: "since === movedTo ? Infinity : limit",
    to: "limit",
    tests: ["rules_test.ts"],
  },
  {
    name: "the time in which the process stood still counts as the peer's silence",
    file: "session.ts",
    from: "    if (late > LATE) this.#excuse(late, now);\n",
    to: "",
    tests: ["rules_test.ts"],
  },
  {
    name: "after a freeze the peer has only the time that was left before it",
    file: "session.ts",
    from: "since === movedTo ? Infinity : limit",
    to: "limit && Infinity",
    tests: ["rules_test.ts"],
  },
  {
    name: "a freeze uses up the time to say what is wanted of a tunnel",
    file: "tunnel/wait.ts",
    from: "if (late <= LATE) return run();",
    to: "if (late > 0) return run();",
    tests: ["tunnel_handshake_test.ts"],
  },
  {
    name: "a tunnel accepts a secret with more behind it",
    file: "tunnel/handshake.ts",
    from: "!await timingSafeEqual(authorization, `Bearer ${secret}`)",
    to: "!authorization.startsWith(`Bearer ${secret}`)",
    tests: ["tunnel_handshake_test.ts"],
  },
  {
    name: "a request that ends early is answered as a target that fails",
    file: "tunnel/handshake.ts",
    from: "request === undefined || error instanceof RangeError",
    to: "error instanceof RangeError",
    tests: ["tunnel_handshake_test.ts"],
  },
  {
    name: "a name in a SOCKS request reaches the terminal as it is",
    file: "tunnel/socks5.ts",
    from: "printable(String.fromCharCode(...await readExactly(client, length!)))",
    to: "String.fromCharCode(...await readExactly(client, length!))",
    tests: ["tunnel_socks5_test.ts"],
  },
  {
    name: "a SOCKS request may be of any version",
    file: "tunnel/socks5.ts",
    from: "  checkVersion(again!);\n",
    to: "",
    tests: ["tunnel_socks5_test.ts"],
  },
  {
    name: "a freeze uses up the time to give credit after FIN",
    file: "stream.ts",
    from: "const isLate = now - due > LATE && !isExcused;",
    to: "const isLate = now < due && !isExcused;",
    tests: ["rules_test.ts"],
  },
  {
    name: "a stream that is cut after its FIN seems whole",
    file: "stream.ts",
    from: "    this.#peerFinished = this.#isDone = false;\n",
    to: "",
    tests: ["rules_test.ts"],
  },
  {
    name: "a reset with data unsent is a clean hang-up",
    file: "session.ts",
    from: " && !this.#outgoing.hasUnsentData &&",
    to: " &&",
    tests: ["rules_test.ts"],
  },
  {
    name: "a stream that has left the table points to those that stay",
    file: "table.ts",
    from: "    entry.neighbour = undefined;\n",
    to: "",
    tests: ["table_test.ts"],
  },
  {
    name: "thousands of streams hear of the end in one turn",
    file: "session.ts",
    from: "if (core.tell() && ++told % TOLD_AT_ONCE === 0) await this.#turn.giveWay();",
    to: "if (core.tell()) told++;",
    tests: ["rules_test.ts"],
  },
  {
    name: "a stream that waits for room to be opened when the session ends waits for ever",
    file: "session.ts",
    from: "    while (this.#outgoing.dismiss(TOLD_AT_ONCE)) await this.#turn.giveWay();\n",
    to: "",
    tests: ["rules_test.ts"],
  },
  {
    name: "a view of half a buffer is kept whatever it costs beside that",
    file: "stream.ts",
    from: " >= bytes.buffer.byteLength + VIEW_COST)",
    to: " >= bytes.buffer.byteLength)",
    tests: ["rules_test.ts"],
  },
  {
    name: "way is given by waiting for another thread",
    file: "clock.ts",
    from: "setImmediate === undefined ? leave() : passTasks(setImmediate)",
    to: "leave()",
    tests: ["turn_test.ts"],
  },
  {
    name: "who always has more to send keeps the process to itself",
    file: "session.ts",
    from: "        } else if (isLong) {\n          now = await turn.giveWay();\n",
    to: "",
    tests: ["session_test.ts"],
  },
  {
    name: "who always takes more keeps the process to itself",
    file: "outgoing.ts",
    from: "        if (length >= COALESCED && turn.isLong(clock.now())) await turn.giveWay();\n",
    to: "",
    tests: ["session_test.ts"],
  },
  {
    name: "writes that the session's end cut say of one another what was taken",
    file: "session.ts",
    from: "bytesWritten > 0 ? own() : sharedByWrites ??= own()",
    to: "sharedByWrites ??= own()",
    tests: ["stream_test.ts"],
  },
  {
    name: "a read that the session's end cuts rejects with the error of a write",
    file: "session.ts",
    from: "      if (bytesWritten === undefined) return shared ??= own();\n      return bytesWritten > 0 ?",
    to: "      return bytesWritten! > 0 ?",
    tests: ["stream_test.ts"],
  },
  {
    name: "a join whose write is stuck does not notice that its stream is lost",
    file: "serve.ts",
    from: "    if (error !== undefined) lost(error);\n",
    to: "",
    tests: ["serve_test.ts"],
  },
  {
    name: "a join drops what the peer of a lost stream had sent whole",
    file: "serve.ts",
    from: "    if (core?.isWhole) await rest.catch(() => {});\n",
    to: "",
    tests: ["serve_test.ts"],
  },
  {
    name: "a chunk that cannot be written leaves the peer waiting",
    file: "stream.ts",
    from: "      abort();\n      throw error;\n",
    to: "      throw error;\n",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "an idle pipe into a stream does not notice that it is lost",
    file: "stream.ts",
    from: "        controller.error(error);\n        abort();\n",
    to: "",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "data on its way to a stream that was closed here makes the peer wait",
    file: "session.ts",
    from: "        if (!stream.isEndedByPeer) this.#flood.expectLateData();\n",
    to: "",
    tests: ["session_test.ts"],
  },
  {
    name: "a burst of streams is refused before the acceptors have had a turn",
    file: "session.ts",
    from: "    if (this.#hadTurn) return this.#refuse(id);\n",
    to: "    if (!this.#hadTurn) return this.#refuse(id);\n",
    tests: ["accept_test.ts"],
  },
  {
    name: "each SYN for a full channel has a turn of its own",
    file: "session.ts",
    from: "        this.#hadTurn = true;\n        this.#syn(unplaced);\n",
    to: "        this.#hadTurn = true;\n        this.#syn(unplaced);\n        this.#hadTurn = false;\n",
    tests: ["accept_test.ts"],
  },
  {
    name: "streams that stall keep their credit while room is scarce",
    file: "window.ts",
    from: "    if (!this.#open || unread < this.#pool.share ||",
    to: "    if (!this.#open || unread >= 0 || unread < this.#pool.share ||",
    tests: ["window_test.ts"],
  },
  {
    name: "streams that are opened while room is scarce start with a whole window",
    file: "window.ts",
    from: "    return this.#size < FIRST_WINDOW;\n",
    to: "    return this.#pool.first < FIRST_WINDOW;\n",
    tests: ["window_test.ts", "rules_test.ts"],
  },
  {
    name: "a stream whose credit was revoked gets none when it has been read",
    file: "window.ts",
    from: "if (!isFirst && !isLow && since <",
    to: "if (!isFirst && since <",
    tests: ["window_test.ts"],
  },
  {
    name: "in version 1 only half of the stalled streams are cut",
    file: "session.ts",
    from: "if (core.unread < share || (isGentle && this.#windows.unread <= maxReceiveBuffer / 2)) break;",
    to: "if (core.unread < share || this.#windows.unread <= maxReceiveBuffer / 2) break;",
    tests: ["rules_test.ts"],
  },
];

const ROOT = `${import.meta.dirname}/../..`;
// A bug may make a run hang for ever, in milliseconds.
const LIMIT = 2 * 60_000;

/** Runs it; rejects when a bug was not found. */
export async function run(args: string[]): Promise<void> {
  const { seeds, only = "" } = parse(args, { seeds: integer(4000, 1), only: anyText });
  const mutants = MUTANTS.filter(({ name }) => name.includes(only));
  await using folder = await makeFolder("mutants");
  const copy = folder.path;
  await copyRepository(copy);
  const tests = [...new Set(mutants.flatMap(({ tests = [] }) => tests))];
  for (const mutant of mutants) plant(mutant, await Deno.readTextFile(`${copy}/${mutant.file}`));
  // What fails without a bug finds none.
  const sound = await simulation(copy, seeds);
  if (!sound.success) throw new Error(`The simulation fails without any bug:\n${sound.output}`);
  const quick = tests.length === 0 ? sound : await quickTests(copy, tests);
  if (!quick.success) throw new Error(`The tests fail without any bug:\n${quick.output}`);

  let found = 0;
  for (const mutant of mutants) {
    const started = performance.now();
    const original = await Deno.readTextFile(`${copy}/${mutant.file}`);
    await Deno.writeTextFile(`${copy}/${mutant.file}`, plant(mutant, original));
    const finder = await find(copy, mutant, seeds);
    await Deno.writeTextFile(`${copy}/${mutant.file}`, original);
    if (finder !== undefined) found++;
    const seconds = ((performance.now() - started) / 1000).toFixed(1);
    console.log(
      `${finder === undefined ? "NOT FOUND" : "found"}: ${mutant.name} (${finder ?? "by nothing"}, ${seconds} s)`,
    );
  }
  console.log(`${found} of ${mutants.length} found`);
  if (found < mutants.length) throw new Error(`${mutants.length - found} bugs were not found`);
}

/** The text with the bug in it. */
export function plant({ name, file, from, to }: Mutant, text: string): string {
  const parts = text.split(from);
  if (parts.length === 2) return parts.join(to);
  throw new Error(`"${name}" cannot be planted: its text stands ${parts.length - 1} times in ${file}:\n${from}`);
}

/** Says what found the bug. */
async function find(copy: string, mutant: Mutant, seeds: number): Promise<string | undefined> {
  const checked = await deno(copy, ["check", "mod.ts"]);
  if (!checked.success) throw new Error(`"${mutant.name}" does not compile:\n${checked.output}`);
  const simulated = await simulation(copy, seeds);
  if (!simulated.success) return `simulation, ${/^again: .*(--seed \d+)$/m.exec(simulated.output)?.[1] ?? "a hang"}`;
  for (const test of mutant.tests ?? []) {
    if (!(await quickTests(copy, [test])).success) return `tests/${test}`;
  }
  return undefined;
}

function simulation(copy: string, seeds: number): Promise<Result> {
  return deno(copy, [
    "run",
    "-A",
    "--no-check",
    "tests/deep/main.ts",
    "simulate",
    "--fail-fast",
    "--seeds",
    `${seeds}`,
  ]);
}

function quickTests(copy: string, files: string[]): Promise<Result> {
  return deno(copy, ["test", "-A", "--no-check", "--fail-fast", ...files.map((file) => `tests/${file}`)]);
}

interface Result {
  success: boolean;
  output: string;
}

async function deno(cwd: string, args: string[]): Promise<Result> {
  const child = new Deno.Command(Deno.execPath(), {
    args,
    cwd,
    env: { NO_COLOR: "1" },
    stdin: "null",
    signal: AbortSignal.timeout(LIMIT),
  });
  const { success, stdout, stderr } = await child.output();
  const decoder = new TextDecoder();
  return { success, output: decoder.decode(stdout) + decoder.decode(stderr) };
}

async function copyRepository(to: string): Promise<void> {
  for await (const { name } of Deno.readDir(ROOT)) {
    if (name.endsWith(".ts") || ["deno.json", ".std", "examples", "tests", "tunnel"].includes(name)) {
      await cp(`${ROOT}/${name}`, `${to}/${name}`, { recursive: true, dereference: true });
    }
  }
}
