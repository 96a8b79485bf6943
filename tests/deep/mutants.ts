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
    file: "_send_half.ts",
    from: "    if (waiting === undefined || waiting.abortable !== signal) return;\n",
    to: "    if (waiting === undefined) return;\n",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "frames that are coalesced wait for the whole pass",
    file: "_coalesce.ts",
    from: "    return frames % FRAMES_PER_LOOK === 0 && ",
    to: "    return frames < 0 && ",
    tests: ["writer_test.ts"],
  },
  {
    name: "a single reader is read for as if it were several",
    file: "_reader.ts",
    from: "link.read(count, isShared);",
    to: "link.read(count, true);",
    tests: ["transport_test.ts"],
  },
  {
    name: "a buffer is given away whose rest is still to be decoded",
    file: "transport.ts",
    from: "    return this.#isOwned && this.#references === 1;\n",
    to: "    return this.#isOwned;\n",
    tests: ["chunks_test.ts"],
  },
  {
    name: "a window grows though the sender did not wait for credit",
    file: "_window.ts",
    from: "    if (waited >= roundTrip * MIN_WAITED_PART) {\n",
    to: "    if (waited >= 0) {\n",
    tests: ["window_test.ts"],
  },
  {
    name: "bytes that stand in a queue shrink no window",
    file: "_window.ts",
    from: "    } else if (roundTrip > pool.roundTrip + MAX_QUEUE_DELAY_MS) {\n",
    to: "    } else if (roundTrip < 0) {\n",
    tests: ["window_test.ts"],
  },
  {
    name: "a window that shrinks is not counted for what it promised",
    file: "_window.ts",
    from: "Math.min(this.#window, Math.max(this.#renewed, promised))",
    to: "this.#renewed",
    tests: ["window_test.ts", "properties_test.ts"],
  },
  {
    name: "an idle stream keeps its growth",
    file: "_window.ts",
    from: "    if (this.#window < window) this.#pool.reclaim();\n",
    to: "",
    tests: ["window_test.ts"],
  },
  {
    name: "answers wait until the transport is read again",
    file: "_reader.ts",
    from: "    if (this.#serving > 0) await this.#served();\n    if (this.#host.hasEnded) return now;\n",
    to: "    if (this.#host.hasEnded) return now;\n",
    tests: ["session_test.ts"],
  },
  {
    name: "a cut chunk of a web stream counts only what had to wait",
    file: "_send_half.ts",
    from: "    return this.#writeRest(p, count, signal, isListened, this.#begun);\n",
    to: "    return this.#writeRest(p.subarray(count), 0, signal, isListened, this.#begun);\n",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "the next read of the transport does not wait for the readers that were served",
    file: "_reader.ts",
    from: "    if (--this.#serving === 0) queueMicrotask(this.#resume);\n",
    to: "    if (this.#serving-- > 0) queueMicrotask(this.#resume);\n",
    tests: ["session_test.ts"],
  },
  {
    name: "a reader that does not read again holds back the transport",
    file: "_reader.ts",
    from: "    this.#pass ??= clock.pass(this.#passed);\n",
    to: "    this.#pass ??= {};\n",
    tests: ["session_test.ts"],
  },
  {
    name: "frames of one pass of the event loop leave one by one",
    file: "_coalesce.ts",
    from: "    else if (!this.#isHeld) this.#pass ??= clock.pass(this.#passed);\n",
    to: "    else if (!this.#isHeld) this.#queue();\n",
    tests: ["writer_test.ts"],
  },
  {
    name: "FIN overtakes data that waits",
    file: "_send_half.ts",
    from: "    if (this.#isWriting) await this.#lockQueue.wait();\n",
    to: "",
  },
  {
    name: "a stream is registered only after its SYN has left",
    file: "_session_core.ts",
    from:
      "    this.streams.add(stream);\n    const waiting = stream.sending.open(signal);\n    if (waiting !== undefined) await this.#waitToOpen(stream, waiting);\n",
    to:
      "    const waiting = stream.sending.open(signal);\n    if (waiting !== undefined) await this.#waitToOpen(stream, waiting);\n    await this.writer.flushed();\n    this.streams.add(stream);\n",
  },
  {
    name: "tiny frames are not merged",
    file: "_chunks.ts",
    from: "      this.#merge(bytes, start, end);\n",
    to: "      this.#pushChunk({ bytes: bytes.slice(start, end), buffer: undefined });\n",
    tests: ["stream_test.ts"],
  },
  {
    name: "bytes sent are compared without wrapping",
    file: "_window.ts",
    from: 'if (((this.#sent - consumed) | 0) < 0) return "invalid";',
    to: 'if (this.#sent - consumed < 0) return "invalid";',
    tests: ["window_test.ts"],
  },
  {
    name: "limits are compared without wrapping",
    file: "_window.ts",
    from: "return ((limit - this.#limit) | 0) > 0 ? limit : this.#limit;",
    to: "return limit > this.#limit ? limit : this.#limit;",
    tests: ["window_test.ts"],
  },
  {
    name: "the read loop waits for a place to accept",
    file: "_session_core.ts",
    from: "    return this.windows.unread >= this.settings.maxReceiveBuffer ||",
    to:
      "    return this.acceptor.pending >= this.settings.acceptBacklog ||\n      this.windows.unread >= this.settings.maxReceiveBuffer ||",
  },
  {
    name: "close() credits what it drops with a late UPD",
    file: "_receive_half.ts",
    from: '    this.#state = "closed";\n    this.#drop();\n',
    to: '    this.#state = "closed";\n    this.#consume(this.#drop());\n',
  },
  {
    name: "UPD goes on after the peer's FIN",
    file: "_receive_half.ts",
    from: "    this.#isEndedByPeer = true;\n    this.#closeWindow();\n",
    to: "    this.#isEndedByPeer = true;\n",
  },
  {
    name: "lost wake-up: a UPD does not wake the writer",
    file: "_send_half.ts",
    from: "      waiting.starvedFrom = undefined;\n      waiting.credit?.notifyOne();\n",
    to: "      waiting.starvedFrom = undefined;\n",
  },
  {
    name: "lost wake-up: reading does not resume when there is room",
    file: "_session_core.ts",
    from: "    this.stalled?.read(stream);\n    this.reader.wake();\n",
    to: "    this.stalled?.read(stream);\n",
  },
  {
    name: "lost wake-up: the next read in turn",
    file: "_receive_half.ts",
    from: "this.#isReading = this.#readQueue?.notifyOne() ?? false;",
    to: "this.#isReading = false;",
  },
  {
    name: "lost wake-up: the next write in turn",
    file: "_send_half.ts",
    from: "this.#isWriting = this.#waiting?.queue?.notifyOne() ?? false;",
    to: "this.#isWriting = false;",
  },
  {
    name: "lost wake-up: an open before the version is known",
    file: "_session_core.ts",
    from: "    this.#versionKnown?.notifyAll();\n",
    to: "    this.#versionKnown?.notifyOne();\n",
  },
  {
    name: "credit is withheld beyond the window",
    file: "_window.ts",
    from: "!isLow && since < Math.min(this.#renewed / 2, MAX_UPDATE_INTERVAL_BYTES)",
    to: "since < this.#renewed * 2",
  },
  {
    name: "data is sent without counting against the credit",
    file: "_send_half.ts",
    from: "      this.#window?.spend(count);\n      at += count;\n    }\n    return at;\n",
    to: "      at += count;\n    }\n    return at;\n",
  },
  {
    name: "close() after closeWrite() sends FIN twice",
    file: "stream.ts",
    from: "      if (this.sending.isFinished) this.#leave();\n      else this.queueFin();\n    }\n    this.report();",
    to: "      if (this.sending.isFinished) this.#leave();\n      this.queueFin();\n    }\n    this.report();",
  },
  {
    name: "the end of the transport is taken for FIN",
    file: "_session_core.ts",
    from: "      stream.fail(makeError);\n      this.streams.delete(stream);\n",
    to:
      "      if (failure === undefined) stream.receiveFin();\n      stream.receiving.finishRead();\n      stream.fail(makeError);\n      this.streams.delete(stream);\n",
  },
  {
    name: "close() does not release what is unread",
    file: "_receive_half.ts",
    from: "    if (count > 0) this.#stream.refund(count);\n    return count;\n",
    to: "    return count;\n",
  },
  {
    name: "a promised limit goes back",
    file: "_window.ts",
    from: "return ((limit - this.#limit) | 0) > 0 ? limit : this.#limit;",
    to: "return (this.consumed + Math.min(this.#window, this.#pool.first)) >>> 0;",
    tests: ["window_test.ts"],
  },
  {
    name: "a UPD that goes back is believed",
    file: "_window.ts",
    from: '    if (((consumed - this.#consumed) | 0) < 0) return "unchanged";\n',
    to: "",
  },
  {
    name: "a partial transport write is taken for whole",
    file: "_writer.ts",
    from: "        if (count < length) count = await this.#writeRest(bytes, count);\n",
    to: "        if (count === 0) count = await this.#writeRest(bytes, count);\n",
  },
  {
    name: "a second SYN makes a second stream",
    file: "_session_core.ts",
    from: "    if (this.streams.get(id) !== undefined) return this.flood.uselessFrame();\n",
    to: "",
  },
  {
    name: "a read that is filled in part is not settled at the end of the batch",
    file: "_receive_half.ts",
    from: "      this.#finishLater();\n      if (stop === end) return;\n",
    to: "      if (this.#filled === into.length) this.#finishLater();\n      if (stop === end) return;\n",
  },
  {
    name: "the keepalive timer is not set again",
    file: "_deadlines.ts",
    from: "    this.arm(host.checkStalled(now));\n    this.schedule();\n",
    to: "    this.arm(host.checkStalled(now));\n",
  },
  {
    name: "a refusal is counted but never sent",
    file: "_session_core.ts",
    from: '    if (this.#phase === "open" || this.#phase === "closing") this.writer.refuse(id);\n',
    to: "",
  },
  {
    name: "the session's end leaves a reader waiting",
    file: "stream.ts",
    from: "    this.receiving.finishRead();\n    if (!this.#isDone)",
    to: "    if (!this.#isDone)",
  },
  {
    name: "the session's end leaves a writer waiting for credit",
    file: "_send_half.ts",
    from: "    this.credit?.close();\n    this.sender?.close();\n",
    to: "    this.sender?.close();\n",
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
    file: "_send_half.ts",
    from: "      if (isAborted && at > 0) return at;\n",
    to: "",
  },
  {
    name: "a write that the session's close cut is ended as if whole",
    file: "_send_half.ts",
    from: '      if (at < p.length && this.#state === "ending") this.#state = "cut";\n',
    to: "",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "close() of a session does not wait for what was written",
    file: "_session_core.ts",
    from: "      await this.writer.flushed();\n",
    to: "",
  },
  {
    name: "close() of a session does not wait for the peer",
    file: "_session_core.ts",
    from: "      this.deadlines.startLinger();\n",
    to: "      this.#end();\n",
  },
  {
    name: "discarded bytes are not credited",
    file: "_receive_half.ts",
    from: '    if (this.#state === "discarding") return this.#consume(end - start);\n',
    to: '    if (this.#state === "discarding") return;\n',
    tests: ["stream_test.ts"],
  },
  {
    name: "maxStreams is not kept",
    file: "_acceptor.ts",
    from: "    if (this.#open >= this.#maxStreams) return true;\n",
    to: "",
  },
  {
    name: "a rest outlives the session",
    file: "_timeslice.ts",
    from: "    clock.clearTimer(this.#timer);\n",
    to: "",
    tests: ["timeslice_test.ts"],
  },
  {
    name: "a write that waited does not begin a new turn",
    file: "_timeslice.ts",
    from: "    if (!this.#hasSettled) this.#startedAt = Infinity;\n",
    to: "",
    tests: ["timeslice_test.ts"],
  },
  {
    name: "the timer outlives the session",
    file: "_deadlines.ts",
    from: "    this.#ended = true;\n    clock.clearTimer(this.#timer);\n",
    to: "    this.#ended = true;\n",
  },
  {
    name: "after a freeze close() takes the peer for quiet whose bytes wait in the socket",
    file: "_deadlines.ts",
    from: "    this.#quietFrom = now;\n    this.#writer.excuse(",
    to: "    this.#writer.excuse(",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "two sessions that hold each other back never find out that the other is gone",
    file: "_session_core.ts",
    from: "    return this.reader.isPaused ? Math.max(since, this.writer.stalledSince ?? Infinity) : since;\n",
    to: "    return this.reader.isPaused ? Infinity : since;\n",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "a write that stalled before reading was held back ends the session at once",
    file: "_session_core.ts",
    from: "    return this.reader.isPaused ? Math.max(since, this.writer.stalledSince ?? Infinity) : since;\n",
    to: "    return this.reader.isPaused ? this.writer.stalledSince ?? Infinity : since;\n",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "a freeze uses up the timeout of close()",
    file: "_deadlines.ts",
    from: "    this.#close.excuse(late, now);\n",
    to: "",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "a connection that was accepted while the server was stopped becomes a session",
    file: "serve.ts",
    from: "      if (signal.aborted) {\n        adapt(connection).close();",
    to: "      if (!signal) {\n        adapt(connection).close();",
    tests: ["serve_test.ts"],
  },
  {
    name: "the buffer that is being decoded is given back",
    file: "transport.ts",
    from: "    if (--this.#references === 0 && this.#isOwned) freeBuffer(this.bytes);\n",
    to: "    if (--this.#references <= 1 && this.#isOwned) freeBuffer(this.bytes);\n",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "a stream is handed over before it is in the table",
    file: "_session_core.ts",
    from: "    this.streams.add(stream);\n    if (!this.acceptor.add(stream)) this.decoder.interrupt();\n",
    to:
      "    if (!this.acceptor.add(stream)) this.decoder.interrupt();\n    this.acceptor.handOver();\n    this.streams.add(stream);\n",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "writes that try again after a timeout starve all else",
    file: "_send_half.ts",
    from: "Math.max(begun, since) + timeout",
    to: "since + timeout",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "a process that is always late judges nobody",
    file: "_deadlines.ts",
    from: "this.since === this.#movedTo ? Infinity : this.limit",
    to: "this.limit",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "the time in which the process stood still counts as the peer's silence",
    file: "_deadlines.ts",
    from: "    if (late > TIMER_LAG_MS) this.#excuse(late, now);\n",
    to: "",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "after a freeze the peer has only the time that was left before it",
    file: "_deadlines.ts",
    from: "this.since === this.#movedTo ? Infinity : this.limit",
    to: "Infinity",
    tests: ["rules_liveness_test.ts"],
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
    file: "_send_half.ts",
    from: "const isLate = now - due > TIMER_LAG_MS && !isExcused;",
    to: "const isLate = now < due && !isExcused;",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "a stream that is cut after its FIN seems whole",
    file: "_receive_half.ts",
    from: '    this.#drop();\n    this.#state = "cut";\n',
    to: '    this.#drop();\n    this.#state = "failed";\n',
    tests: ["rules_limits_test.ts"],
  },
  {
    name: "a reset with data unsent is a clean hang-up",
    file: "_session_core.ts",
    from: "      !this.writer.hasUnsentData && this.decoder",
    to: "      this.decoder",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "a stream that leaves takes another one with its id along",
    file: "_table.ts",
    from: "if (this.#entries[entry.id] !== entry) return false;",
    to: "if (!(entry.id in this.#entries)) return false;",
    tests: ["table_test.ts"],
  },
  {
    name: "thousands of streams hear of the end in one turn",
    file: "_session_core.ts",
    from: "      if (stream.notifyWaiters() && ++notified % NOTIFY_BATCH === 0) await slice.yieldToEventLoop();\n",
    to: "      if (stream.notifyWaiters()) notified++;\n",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "a FIN overtakes the SYN that waits for room",
    file: "_send_half.ts",
    from: "    this.#isWriting = true;\n    const waiting = this.#waiting = new Waiting();\n",
    to: "    const waiting = this.#waiting = new Waiting();\n",
    tests: ["session_test.ts"],
  },
  {
    name: "a frame that the session's end took back counts as sent",
    file: "_writer.ts",
    from: "    if (!frame.isEncoded) throw ENDED;\n",
    to: "",
    tests: ["rules_open_test.ts", "rules_close_test.ts", "writer_test.ts"],
  },
  {
    name: "a view of half a buffer is kept whatever it costs beside that",
    file: "_chunks.ts",
    from: " >= bytes.buffer.byteLength + VIEW_COST_BYTES)",
    to: " >= bytes.buffer.byteLength)",
    tests: ["rules_limits_test.ts"],
  },
  {
    name: "way is given by waiting for another thread",
    file: "_clock.ts",
    from: "setImmediate === undefined ? leave() : passTasks(setImmediate)",
    to: "leave()",
    tests: ["timeslice_test.ts"],
  },
  {
    name: "who always has more to send keeps the process to itself",
    file: "_reader.ts",
    from: "    if (!flood.isExhausted) return await this.slice.yieldToEventLoop();\n",
    to: "    if (!flood.isExhausted) return now;\n",
    tests: ["session_test.ts"],
  },
  {
    name: "who always takes more keeps the process to itself",
    file: "_writer.ts",
    from: "        if (length >= COALESCE_BYTES && slice.isExpired(clock.now())) await slice.yieldToEventLoop();\n",
    to: "",
    tests: ["session_test.ts"],
  },
  {
    name: "writes that the session's end cut say of one another what was taken",
    file: "_session_core.ts",
    from: "bytesWritten > 0 ? own() : sharedByWrites ??= own()",
    to: "sharedByWrites ??= own()",
    tests: ["stream_test.ts"],
  },
  {
    name: "a read that the session's end cuts rejects with the error of a write",
    file: "_session_core.ts",
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
    from: "    if (core?.receiving.isWhole) await rest.catch(() => {});\n",
    to: "",
    tests: ["serve_test.ts"],
  },
  {
    name: "a chunk that cannot be written leaves the peer waiting",
    file: "_web_streams.ts",
    from: "      this.abort();\n      throw error;\n",
    to: "      throw error;\n",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "an idle pipe into a stream does not notice that it is lost",
    file: "_web_streams.ts",
    from: "      controller.error(error);\n      this.abort();\n",
    to: "",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "data on its way to a stream that was closed here makes the peer wait",
    file: "_session_core.ts",
    from: "    if (!stream.isEndedByPeer) this.flood.expectLateData();\n",
    to: "",
    tests: ["session_test.ts"],
  },
  {
    name: "a burst of streams is refused before the acceptors have had a turn",
    file: "_acceptor.ts",
    from: "      } else if (this.#hadTurn) {\n",
    to: "      } else if (!this.#hadTurn) {\n",
    tests: ["accept_test.ts"],
  },
  {
    name: "each SYN for a full channel has a turn of its own",
    file: "_acceptor.ts",
    from: "        this.#host.refuseArrived(stream);\n",
    to: "        this.#host.refuseArrived(stream);\n        this.#hadTurn = false;\n",
    tests: ["accept_test.ts"],
  },
  {
    name: "streams that stall keep their credit while room is scarce",
    file: "_window.ts",
    from: "    if (!this.#open || unread < this.#pool.share ||",
    to: "    if (!this.#open || unread >= 0 || unread < this.#pool.share ||",
    tests: ["window_test.ts"],
  },
  {
    name: "streams that are opened while room is scarce start with a whole window",
    file: "_window.ts",
    from: "    return this.#size < INITIAL_WINDOW;\n",
    to: "    return this.#pool.first < INITIAL_WINDOW;\n",
    tests: ["window_test.ts", "rules_credit_test.ts"],
  },
  {
    name: "a stream whose credit was revoked gets none when it has been read",
    file: "_window.ts",
    from: "if (!isFirst && !isLow && since <",
    to: "if (!isFirst && since <",
    tests: ["window_test.ts"],
  },
  {
    name: "in version 1 only half of the stalled streams are cut",
    file: "_stalled.ts",
    from: "if (stream.unread < share || (isGentle && this.#windows.unread <= this.#capacity / 2)) break;",
    to: "if (stream.unread < share || this.#windows.unread <= this.#capacity / 2) break;",
    tests: ["rules_limits_test.ts"],
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
