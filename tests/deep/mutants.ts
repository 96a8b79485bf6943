/**
 * Plants known bugs, one at a time, in a copy of the repository, and checks that a test fails for each: one of the quick
 * tests of the bug, or the simulation, which takes longer. A bug of resumable connections must be found by the simulation
 * with carriers that die.
 *
 * @module
 */

import { cp } from "node:fs/promises";
import { makeFolder } from "../programs.ts";
import { anyText, flag, integer, parse } from "./shared/options.ts";

/** One line for the list of long tests. */
export const description =
  "Plants known bugs in a copy and expects a test to fail for each: [--seeds 4000] [--only WORDS OF NAME] [--carriers]";

/** A known bug, as a replacement in a source file. */
export interface Mutant {
  /** What the bug does. */
  name: string;
  file: string;
  /** The text to replace by `to`; must occur in the file exactly once. */
  from: string;
  to: string;
  /** The quick tests that may find it before the simulation. */
  tests?: string[];
  /** Whether the simulation with carriers that die must find it. */
  isOfCarriers?: boolean;
}

/** The bugs. */
export const MUTANTS: Mutant[] = [
  {
    name: "aborting a web stream aborts writes of the stream too",
    file: "_send_half.ts",
    from: "    if (waiting === undefined || waiting.abortable !== signal) return;\n",
    to: "    if (waiting === undefined) return;\n",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "a web stream without a reader consumes the next bytes before read()",
    file: "_web_streams.ts",
    from: "    if (this.readable.locked) this.pull();\n    else this.#report();\n",
    to: "    this.pull();\n",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "a failure is not reported to a reader that follows one that was released in a read",
    file: "_web_streams.ts",
    from: "    else this.#report();\n",
    to: "",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "cancelling readable ends a waiting read as if the peer had sent FIN",
    file: "_receive_half.ts",
    from: "    if (this.#into !== undefined) this.#endRead()(0);\n    this.#consume",
    to: "    if (this.#into !== undefined) this.#endRead()(null);\n    this.#consume",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "a write of no chunk to a web stream leaves the rejection of its write unhandled",
    file: "_web_streams.ts",
    from: 'return typeof written === "number" ? undefined : this.#finish(',
    to: 'return typeof written === "number" || chunk.length < 0 ? undefined : this.#finish(',
    tests: ["web_streams_test.ts"],
  },
  {
    name: "coalesced frames wait for the end of the pass",
    file: "_coalesce.ts",
    from: "    return frames > 0 && frames % FRAMES_PER_LOOK === 0 && ",
    to: "    return frames < 0 && ",
    tests: ["writer_test.ts"],
  },
  {
    name: "frames that have waited long enough leave only after the readers have run",
    file: "_coalesce.ts",
    from: "    if (this.#isOverdue) this.#run();\n",
    to: "",
    tests: ["writer_test.ts"],
  },
  {
    name: "frames leave at each write, although they have not waited",
    file: "_coalesce.ts",
    from: "    if (this.#isOverdue) this.#run();\n",
    to: "    this.#run();\n",
    tests: ["writer_test.ts"],
  },
  {
    name: "a UPD begins the time for which frames are coalesced",
    file: "_write_buffer.ts",
    from: "    this.#end = encodeUpdate(this.#memory, this.#end, id, consumed, window);\n",
    to: "    this.#end = encodeUpdate(this.#memory, this.#end, id, consumed, window);\n    this.#frames++;\n",
    tests: ["writer_test.ts"],
  },
  {
    name: "a write does not send the frames that have waited long enough",
    file: "_send_half.ts",
    from: "    if (count === p.length) {\n      this.#stream.output.flushOverdue();\n",
    to: "    if (count === p.length) {\n",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "close() does not send the frames that have waited long enough",
    file: "stream.ts",
    from: "    this.report();\n    this.#host.writer.flushOverdue();\n",
    to: "    this.report();\n",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "openStream() does not send the frames that have waited long enough",
    file: "_session_core.ts",
    from: "    stream.announce();\n    this.writer.flushOverdue();\n",
    to: "    stream.announce();\n",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "a read buffer shrinks after one short read",
    file: "_adapt.ts",
    from: "else if (isShort && this.#wasShort)",
    to: "else if (isShort)",
    tests: ["transport_test.ts"],
  },
  {
    name: "a read buffer never shrinks",
    file: "_adapt.ts",
    from: "else if (isShort && this.#wasShort)",
    to: "else if (isShort && !isShort)",
    tests: ["transport_test.ts"],
  },
  {
    name: "a single reader is treated as several",
    file: "_reader.ts",
    from: "link.read(count, isShared);",
    to: "link.read(count, true);",
    tests: ["transport_test.ts"],
  },
  {
    name: "a buffer is handed over before its rest is decoded",
    file: "transport.ts",
    from: "    return this.#isOwned && this.#references === 1;\n",
    to: "    return this.#isOwned;\n",
    tests: ["chunks_test.ts"],
  },
  {
    name: "a window grows although the sender did not wait for credit",
    file: "_window.ts",
    from: "    if (waited >= roundTrip * MIN_WAITED_PART) {\n",
    to: "    if (waited >= 0) {\n",
    tests: ["window_test.ts"],
  },
  {
    name: "a queue in the network does not shrink the window",
    file: "_window.ts",
    from: "    } else if (roundTrip > pool.roundTrip + MAX_QUEUE_DELAY_MS) {\n",
    to: "    } else if (roundTrip < 0) {\n",
    tests: ["window_test.ts"],
  },
  {
    name: "a shrunk window is counted without its promised credit",
    file: "_window.ts",
    from: "Math.min(this.#window, Math.max(this.#renewed, promised))",
    to: "this.#renewed",
    tests: ["window_test.ts", "properties_test.ts"],
  },
  {
    name: "an idle stream keeps its grown window",
    file: "_window.ts",
    from: "    if (this.#window < window) this.#pool.reclaim();\n",
    to: "",
    tests: ["window_test.ts"],
  },
  {
    name: "answers wait for the next read of the transport",
    file: "_reader.ts",
    from: "    if (this.#serving > 0) await this.#served();\n    if (this.#host.hasEnded) return now;\n",
    to: "    if (this.#host.hasEnded) return now;\n",
    tests: ["session_test.ts"],
  },
  {
    name: "an aborted chunk of a web stream counts only the bytes that waited",
    file: "_send_half.ts",
    from: "    return this.#writeRest(p, count, signal, isListened, this.#begun);\n",
    to: "    return this.#writeRest(p.subarray(count), 0, signal, isListened, this.#begun);\n",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "the next transport read does not wait for the readers served",
    file: "_reader.ts",
    from: "    if (--this.#serving === 0 && this.#goOn !== undefined) queueMicrotask(this.#resume);\n",
    to: "    if (this.#serving-- > 0) queueMicrotask(this.#resume);\n",
    tests: ["session_test.ts"],
  },
  {
    name: "a reader that does not read again pauses the transport",
    file: "_reader.ts",
    from: "    this.#pass ??= clock.pass(this.#passed);\n",
    to: "    this.#pass ??= {};\n",
    tests: ["session_test.ts"],
  },
  {
    name: "frames of one pass are written one by one",
    file: "_coalesce.ts",
    from: "    else if (!this.#isHeld) this.#pass ??= clock.pass(this.#passed);\n",
    to: "    else if (!this.#isHeld) this.#queue();\n",
    tests: ["writer_test.ts"],
  },
  {
    name: "the signal of an abort is lost when the buffer is full",
    file: "_writer.ts",
    from: "      if (!this.#tryReset(source)) return false;\n",
    to: "      if (!this.#tryReset(source)) return true;\n",
    tests: ["writer_test.ts", "stream_abort_test.ts"],
  },
  {
    name: "the signal of an abort overtakes the FIN of complete data",
    file: "_writer.ts",
    from:
      "    if (isFinDue) this.#encode(FIN, id, EMPTY_BYTES, 0, 0);\n    this.#encode(NOP, id, EMPTY_BYTES, 0, 0);\n" +
      "    this.#encode(NOP, complement(id), EMPTY_BYTES, 0, 0);\n    if (!isFinDue && !isFinEncoded)",
    to: "    this.#encode(NOP, id, EMPTY_BYTES, 0, 0);\n    this.#encode(NOP, complement(id), EMPTY_BYTES, 0, 0);\n" +
      "    if (!isFinEncoded)",
    tests: ["writer_test.ts", "stream_abort_test.ts"],
  },
  {
    name: "an abort drops the FIN of complete data that waits for room",
    file: "stream.ts",
    from: "    this.isFinDue = isFinDue;\n",
    to: "",
    tests: ["stream_abort_test.ts"],
  },
  {
    name: "the two NOPs of an abort are not adjacent",
    file: "_writer.ts",
    from: "    this.#encode(NOP, complement(id), EMPTY_BYTES, 0, 0);\n    if (!isFinDue && !isFinEncoded) " +
      "this.#encode(FIN, id, EMPTY_BYTES, 0, 0);\n",
    to: "    if (!isFinDue && !isFinEncoded) this.#encode(FIN, id, EMPTY_BYTES, 0, 0);\n" +
      "    this.#encode(NOP, complement(id), EMPTY_BYTES, 0, 0);\n",
    tests: ["writer_test.ts", "stream_abort_test.ts"],
  },
  {
    name: "two NOPs abort a stream although a frame arrived between them",
    file: "_reset.ts",
    from: "this.#id === first && this.#position + 1 === position",
    to: "this.#id === first && this.#position >= 0",
    tests: ["stream_abort_test.ts"],
  },
  {
    name: "an aborted stream stays in the table",
    file: "stream.ts",
    from: "    this.sending.finish();\n    this.#leave();\n",
    to: "    this.sending.finish();\n",
    tests: ["stream_abort_test.ts"],
  },
  {
    name: "a stream that the peer aborted stays in the table",
    file: "stream.ts",
    from: "      this.#leave();\n      return new StreamResetError",
    to: "      return new StreamResetError",
    tests: ["stream_abort_test.ts"],
  },
  {
    name: "a stream that the peer aborted leaves the table before its handler has noticed",
    file: "stream.ts",
    from: "    if (this.sending.isFinished) this.#leave();\n    this.notifyWaiters();\n",
    to: "    this.#leave();\n    this.notifyWaiters();\n",
    tests: ["stream_abort_test.ts"],
  },
  {
    name: "an abort of the peer drops what had arrived",
    file: "stream.ts",
    from: "    this.#isReset = true;\n",
    to: "    this.#isReset = true;\n    this.receiving.cut();\n",
    tests: ["stream_abort_test.ts"],
  },
  {
    name: "a failed side of a join looks like an end to the peer of the other",
    file: "serve.ts",
    from: "    for (const connection of [a, b]) if (connection instanceof Stream) connection.abort(error);\n",
    to: "",
    tests: ["stream_abort_test.ts"],
  },
  {
    name: "a fault of a forwarded connection ends the socket instead of resetting it",
    file: "tunnel/forward.ts",
    from: "    else reset(socket);\n",
    to: "",
    tests: ["tunnel_faults_test.ts"],
  },
  {
    name: "a reset loses the end of a complete direction",
    file: "tunnel/forward.ts",
    from: "    this.hasEnded = true;\n",
    to: "",
    tests: ["tunnel_faults_test.ts"],
  },
  {
    name: "FIN overtakes waiting data",
    file: "_send_half.ts",
    from: "    if (this.#isWriting) await this.#lockQueue.wait();\n",
    to: "",
  },
  {
    name: "a stream is registered only after its SYN was written",
    file: "_session_core.ts",
    from:
      "    this.streams.add(stream);\n    const waiting = stream.sending.open(signal);\n    return waiting === undefined ? this.#announce(stream) : this.#waitToOpen(stream, waiting);\n",
    to:
      "    const waiting = stream.sending.open(signal);\n    if (waiting !== undefined) return this.#waitToOpen(stream, waiting);\n    this.#announce(stream);\n    return this.writer.flushed().then(() => {\n      this.streams.add(stream);\n      return stream;\n    });\n",
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
    name: "the read loop waits while the accept backlog is full",
    file: "_session_core.ts",
    from: "    return this.windows.unread >= this.settings.maxReceiveBuffer ||",
    to:
      "    return this.acceptor.pending >= this.settings.acceptBacklog ||\n      this.windows.unread >= this.settings.maxReceiveBuffer ||",
  },
  {
    name: "close() sends a UPD for the data it drops",
    file: "_receive_half.ts",
    from: '    this.#state = "closed";\n    this.#drop();\n',
    to: '    this.#state = "closed";\n    this.#consume(this.#drop());\n',
  },
  {
    name: "UPDs are sent after the peer's FIN",
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
    name: "lost wake-up: reading does not resume when the buffer has room",
    file: "_session_core.ts",
    from: "    this.stalled?.read(stream);\n    this.reader.wake();\n",
    to: "    this.stalled?.read(stream);\n",
  },
  {
    name: "lost wake-up: the next queued read",
    file: "_receive_half.ts",
    from: "this.#isReading = this.#readQueue?.notifyOne() ?? false;",
    to: "this.#isReading = false;",
  },
  {
    name: "lost wake-up: the next queued write",
    file: "_send_half.ts",
    from: "this.#isWriting = this.#waiting?.queue?.notifyOne() ?? false;",
    to: "this.#isWriting = false;",
  },
  {
    name: "lost wake-up: a second open before the version is known",
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
    from:
      "      if (this.sending.isFinished) this.#leave();\n      else this.queueFin();\n    } else if (this.#isReset) {",
    to: "      if (this.sending.isFinished) this.#leave();\n      this.queueFin();\n    } else if (this.#isReset) {",
  },
  {
    name: "the end of the transport counts as FIN",
    file: "_session_core.ts",
    from: "      stream.fail(makeError);\n      this.streams.delete(stream);\n",
    to:
      "      if (failure === undefined) stream.receiveFin();\n      stream.receiving.finishRead();\n      stream.fail(makeError);\n      this.streams.delete(stream);\n",
  },
  {
    name: "close() does not release unread bytes",
    file: "_receive_half.ts",
    from: "    if (count > 0) this.#stream.refund(count);\n    return count;\n",
    to: "    return count;\n",
  },
  {
    name: "a promised limit decreases",
    file: "_window.ts",
    from: "return ((limit - this.#limit) | 0) > 0 ? limit : this.#limit;",
    to: "return (this.consumed + Math.min(this.#window, this.#pool.first)) >>> 0;",
    tests: ["window_test.ts"],
  },
  {
    name: "a UPD with a lower consumed is accepted",
    file: "_window.ts",
    from: '    if (((consumed - this.#consumed) | 0) < 0) return "unchanged";\n',
    to: "",
  },
  {
    name: "a partial transport write counts as complete",
    file: "_writer.ts",
    from: "        if (count < length) count = await this.#writeRest(bytes, count);\n",
    to: "        if (count === 0) count = await this.#writeRest(bytes, count);\n",
  },
  {
    name: "a duplicate SYN opens a second stream",
    file: "_session_core.ts",
    from: "    if (this.streams.get(id) !== undefined) return this.flood.uselessFrame();\n",
    to: "",
  },
  {
    name: "a partly filled read does not settle at the end of the batch",
    file: "_receive_half.ts",
    from: "      this.#finishLater();\n      if (stop === end) return;\n",
    to: "      if (this.#filled === into.length) this.#finishLater();\n      if (stop === end) return;\n",
  },
  {
    name: "the keepalive timer is not rescheduled",
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
    name: "the session's end leaves a read pending",
    file: "stream.ts",
    from: "    this.receiving.finishRead();\n    if (!this.#isDone)",
    to: "    if (!this.#isDone)",
  },
  {
    name: "the session's end leaves a write waiting for credit",
    file: "_send_half.ts",
    from: "    this.credit?.close();\n    this.sender?.close();\n",
    to: "    this.sender?.close();\n",
  },
  {
    name: "a frame of the other version is accepted",
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
    name: "an aborted write rejects although it sent bytes",
    file: "_send_half.ts",
    from: "      if (isAborted && at > 0) return at;\n",
    to: "",
  },
  {
    name: "a write cut by Session.close() ends with FIN as if complete",
    file: "_send_half.ts",
    from: '      if (at < p.length && this.#state === "ending") this.#state = "cut";\n',
    to: "",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "Session.close() does not wait for written data",
    file: "_session_core.ts",
    from: "      await this.writer.flushed();\n",
    to: "",
  },
  {
    name: "Session.close() does not wait for the peer",
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
    name: "maxStreams is not enforced",
    file: "_acceptor.ts",
    from: "    if (this.#open >= this.#maxStreams) return true;\n",
    to: "",
  },
  {
    name: "the timer of a pause outlives the session",
    file: "_timeslice.ts",
    from: "    clock.clearTimer(this.#timer);\n",
    to: "",
    tests: ["timeslice_test.ts"],
  },
  {
    name: "a write that waited does not start a new time slice",
    file: "_timeslice.ts",
    from: "    if (!this.#hasSettled) this.#startedAt = Infinity;\n",
    to: "",
    tests: ["timeslice_test.ts"],
  },
  {
    name: "the deadline timer outlives the session",
    file: "_deadlines.ts",
    from: "    this.#ended = true;\n    clock.clearTimer(this.#timer);\n",
    to: "    this.#ended = true;\n",
  },
  {
    name: "after a freeze close() counts the peer as quiet before reading its bytes",
    file: "_deadlines.ts",
    from: "    this.#quietFrom = now;\n    this.#writer.excuse(",
    to: "    this.#writer.excuse(",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "two sessions that pause each other never time out",
    file: "_session_core.ts",
    from: "    return this.reader.isPaused ? Math.max(since, this.writer.stalledSince ?? Infinity) : since;\n",
    to: "    return this.reader.isPaused ? Infinity : since;\n",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "a write that stalled before reading was paused ends the session at once",
    file: "_session_core.ts",
    from: "    return this.reader.isPaused ? Math.max(since, this.writer.stalledSince ?? Infinity) : since;\n",
    to: "    return this.reader.isPaused ? this.writer.stalledSince ?? Infinity : since;\n",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "a freeze counts against the timeout of close()",
    file: "_deadlines.ts",
    from: "    this.#close.excuse(late, now);\n",
    to: "",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "a connection accepted during shutdown becomes a session",
    file: "serve.ts",
    from: "      if (signal.aborted) {\n        drop(connection, this.#report);",
    to: "      if (!signal) {\n        drop(connection, this.#report);",
    tests: ["serve_test.ts"],
  },
  {
    name: "a value accepted during shutdown that is not a transport rejects finished",
    file: "serve.ts",
    from: "    // `adapt` throws for a value that is not a transport.\n    onError(error);\n",
    to: "    throw error;\n",
    tests: ["serve_test.ts"],
  },
  {
    name: "the buffer being decoded is freed",
    file: "transport.ts",
    from: "    if (--this.#references === 0 && this.#isOwned) freeBuffer(this.bytes);\n",
    to: "    if (--this.#references <= 1 && this.#isOwned) freeBuffer(this.bytes);\n",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "a stream is handed over before it is registered",
    file: "_session_core.ts",
    from: "    this.streams.add(stream);\n    if (!this.acceptor.add(stream)) this.decoder.interrupt();\n",
    to:
      "    if (!this.acceptor.add(stream)) this.decoder.interrupt();\n    this.acceptor.handOver();\n    this.streams.add(stream);\n",
    tests: ["reentrancy_test.ts"],
  },
  {
    name: "retried writes after a timeout starve the event loop",
    file: "_send_half.ts",
    from: "Math.max(begun, since) + timeout",
    to: "since + timeout",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "an event loop that is always late never times out the peer",
    file: "_deadlines.ts",
    from: "this.since === this.#movedTo ? Infinity : this.limit",
    to: "this.limit",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "the time of a freeze counts as the peer's silence",
    file: "_deadlines.ts",
    from: "    else if (late > TIMER_LAG_MS) this.#excuse(late, now);\n",
    to: "",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "silence counts while the connection is suspended",
    file: "_deadlines.ts",
    from: "if (host.isSuspended || isResumed) this.#excuse(now - this.#tickedAt, now);\n    else if",
    to: "if",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "round trips are measured by a clock that stands still",
    file: "_reader.ts",
    from: "    this.#host.windows.now = now;\n",
    to: "",
    tests: ["rules_credit_test.ts"],
  },
  {
    name: "a resumption acknowledges what was only written",
    file: "_resume_core.ts",
    from: "    this.#written = written;\n",
    to: "    this.#written = written;\n    this.#replay.acknowledge(written);\n",
    isOfCarriers: true,
  },
  {
    name: "a write resolves while suspended, and its bytes are dropped",
    file: "_resume_core.ts",
    from: "    return this.#replay.append(",
    to: "    return this.#carrier === undefined ? p.length : this.#replay.append(",
    isOfCarriers: true,
  },
  {
    name: "a write to a slow carrier resolves although more than 64 KiB wait",
    file: "_resume_core.ts",
    from: "sent - (bytes.length - at)",
    to: "sent",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "a write to a carrier that is behind takes everything",
    file: "_resume_core.ts",
    from: "this.#isWritten ? p : p.subarray(0, MAX_WAITING_BYTES)",
    to: "p",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "a session writes into memory that its connection keeps",
    file: "_writer.ts",
    from: "    leaving.exchange(kept.replacement);\n",
    to: "",
    tests: ["writer_test.ts"],
  },
  {
    name: "memory is handed out although a record is kept there",
    file: "_replay.ts",
    from: "    const [bytes] = this.#spare.splice(at, 1);\n",
    to: "    const bytes = this.#spare[at];\n",
    tests: ["resume_frame_test.ts"],
  },
  {
    name: "a connection keeps more than maxUnacknowledged bytes in the memory of its session",
    file: "_replay.ts",
    from: "    if (count > this.room) return false;\n",
    to: "",
    tests: ["resume_frame_test.ts"],
  },
  {
    name: "memory that is mostly empty is kept",
    file: "_replay.ts",
    from: " && end * 2 >= memory.length",
    to: "",
    tests: ["resume_frame_test.ts"],
  },
  {
    name: "a session's memory is kept although the connection has ended",
    file: "_resume_core.ts",
    from: "  async #keep(memory: Uint8Array, end: number): Promise<number> {\n    this.#checkWritable();\n",
    to: "  async #keep(memory: Uint8Array, end: number): Promise<number> {\n",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "a reply to a resumption counts one byte too few",
    file: "_resume_listener.ts",
    from: "encodeReply(RESUMED, { token, received: core.received })",
    to: "encodeReply(RESUMED, { token, received: Math.max(0, core.received - 1) })",
    isOfCarriers: true,
  },
  {
    name: "a resumption sends a record again from its start",
    file: "_replay.ts",
    from: "      page.first += count - start;\n      encodeDataHeader(page.bytes, page.first, ends[0]! - count);\n",
    to: "",
    isOfCarriers: true,
  },
  {
    name: "a resumption does not send the end of writing again",
    file: "_replay.ts",
    from: "    this.#position = page.first;\n",
    to: "    this.#position = page.bytes[page.first] === END ? page.used : page.first;\n",
    isOfCarriers: true,
  },
  {
    name: "a lost carrier ends a half-closed connection",
    file: "_resume_core.ts",
    from: "    this.detach();\n    this.lastError = error;\n",
    to:
      "    this.detach();\n    if (this.#isEndedByPeer || this.#isEndAcknowledged) return this.end();\n    this.lastError = error;\n",
    isOfCarriers: true,
  },
  {
    name: "a lost carrier ends a connection although its peer lacks the last acknowledgement",
    file: "_resume_core.ts",
    from: "    this.detach();\n    this.lastError = error;\n",
    to: "    this.detach();\n    if (this.isDone) return this.end();\n    this.lastError = error;\n",
    tests: ["resume_test.ts"],
  },
  {
    name: "a connection is closed without an acknowledgement of what was read",
    file: "_resume_core.ts",
    from: 'carrier.isAcknowledgementDue = this.#phase !== "closing";',
    to: "carrier.isAcknowledgementDue = false;",
    tests: ["resume_test.ts"],
  },
  {
    name: "close() while suspended leaves a peer without the acknowledgement of its end",
    file: "_resume_core.ts",
    from: "this.isDone && this.#carrier === undefined;",
    to: "false;",
    tests: ["resume_test.ts"],
  },
  {
    name: "a carrier continues a connection that has ended",
    file: "_resume_core.ts",
    from: "    if (this.hasEnded) return closeQuietly(connection);\n",
    to: "",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "a carrier whose write has failed is not read any more",
    file: "_resume_core.ts",
    from:
      "    carrier.closing = clock.setTimer(() => this.#lose(carrier, error), LAST_READ_MS);\n    this.#readAhead();\n",
    to: "    this.#lose(carrier, error);\n",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "carriers that are lost at once are replaced without a pause",
    file: "_resume_dialer.ts",
    from: "    else if (!this.#hasWorked) await this.#wait();\n",
    to: "",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "a suspended connection keeps the memory for reuse",
    file: "_resume_timers.ts",
    from: "this.#suspendedAt === Infinity ? Infinity : this.#trimAt;",
    to: "Infinity;",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "a lost carrier looks like the end of writing",
    file: "_resume_core.ts",
    from: 'if (count === null) throw new ResumptionError("The connection below has ended");',
    to: "if (count === null) this.#isEndedByPeer = true;\n        if (count === null) return 0;",
    isOfCarriers: true,
  },
  {
    name: "bytes of an old carrier are read after a resumption",
    file: "_resume_core.ts",
    from: "    if (carrier !== this.#carrier) return 0;\n",
    to: "",
    isOfCarriers: true,
  },
  {
    name: "an old carrier is read while the reply to a resumption is written",
    file: "_resume_listener.ts",
    from: "    core.detach();\n    try {",
    to: "    try {",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "the timers of a session run while its connection is suspended",
    file: "resume.ts",
    from: '    return this.#core.state === "suspended";\n',
    to: "    return false;\n",
    isOfCarriers: true,
  },
  {
    name: "a session counts the time of several carriers that hang one after the other",
    file: "_deadlines.ts",
    from: "    if (isResumed) {\n",
    to: "    if (host.resumptions < 0) {\n",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "a write that waits for an acknowledgement sleeps on after a resumption",
    file: "_resume_core.ts",
    from: "    this.timers.attached();\n    this.#notify();\n",
    to: "    this.timers.attached();\n",
    isOfCarriers: true,
  },
  {
    name: "a silent carrier is never lost, so its connection is not resumed",
    file: "_resume_core.ts",
    from: '    this.lose(new DOMException("The connection below was silent for too long", "TimeoutError"));\n',
    to: "",
    isOfCarriers: true,
  },
  {
    name: "a late hello of an attempt that was given up ends the connection",
    file: "_resume_listener.ts",
    from: "    if (received < core.confirmed) return closeQuietly(connection);\n",
    to: "",
    isOfCarriers: true,
  },
  {
    name: "a new connection ends when the write of its reply fails",
    file: "_resume_listener.ts",
    from: "      if (failure !== undefined) entry.core.lose(failure.error);\n",
    to: "      if (failure !== undefined) return entry.core.end(failure);\n",
    isOfCarriers: true,
  },
  {
    name: "the reply to a new connection replaces the carrier of its resumption",
    file: "_resume_listener.ts",
    from: "    if (entry.hellos > 0) {\n",
    to: "    if (entry.hellos < 0) {\n",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "close() drops what was written, and not received by the peer",
    file: "_resume_core.ts",
    from: 'if (this.#phase === "open" || (this.#isEndAcknowledged && !mustResume)) return this.#close();',
    to: "if (this.#phase !== undefined) return this.#close();",
    isOfCarriers: true,
  },
  {
    name: "an acknowledgement that cannot be sent makes the timer fire at once",
    file: "_resume_timers.ts",
    from: "      this.#acknowledgeAt = Infinity;\n      host.acknowledge();\n",
    to: "      host.acknowledge();\n",
    isOfCarriers: true,
  },
  {
    name: "an acknowledgement of resumption counts what was only received ahead",
    file: "_resume_core.ts",
    from: "      const count = this.#received - this.#held.length;\n",
    to: "      const count = this.#received;\n",
    tests: ["resume_test.ts"],
  },
  {
    name: "a resumed carrier repeats the received part of a record",
    file: "_replay.ts",
    from: "      page.first += count - start;\n      encodeDataHeader(page.bytes, page.first, ends[0]! - count);\n",
    to: "",
    tests: ["resume_frame_test.ts"],
  },
  {
    name: "the rest of a record is sent with the header of the whole",
    file: "_replay.ts",
    from: "encodeDataHeader(page.bytes, page.first, ends[0]! - count);",
    to: "encodeDataHeader(page.bytes, page.first, ends[0]! - start);",
    tests: ["resume_frame_test.ts"],
  },
  {
    name: "a second resumption counts the records that the first one has dropped",
    file: "_replay.ts",
    from: "    ends.splice(0, received);\n    if (count > start) {\n",
    to: "    ends.splice(0, Math.max(0, received - 1));\n    if (count > start) {\n",
    tests: ["resume_frame_test.ts"],
  },
  {
    name: "a second resumption counts from the start of the page",
    file: "_replay.ts",
    from: "    page.start = count;\n",
    to: "",
    tests: ["resume_frame_test.ts"],
  },
  {
    name: "an end whose peer sends the probes keeps its memory",
    file: "_resume_timers.ts",
    from: "    if (now >= this.#trimAt) {\n",
    to: "    if (now >= this.#trimAt && now >= this.#heardAt + half) {\n",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "an idle connection keeps a page for the next small record",
    file: "_replay.ts",
    from: "if (isSmall || this.#spareBytes",
    to: "if (this.#spareBytes",
    tests: ["resume_frame_test.ts"],
  },
  {
    name: "memory that was used a moment ago is freed",
    file: "_replay.ts",
    from: "    if (!isIdle) return false;\n",
    to: "",
    tests: ["resume_frame_test.ts"],
  },
  {
    name: "a peer that has sent 256 KiB waits for its acknowledgement",
    file: "_resume_core.ts",
    from: "Math.min(MAX_UNREPORTED_BYTES, this.#replay.capacity / 2)",
    to: "Math.min(2 * MAX_UNREPORTED_BYTES, this.#replay.capacity / 2)",
    tests: ["resume_recovery_test.ts"],
  },
  {
    name: "the end of writing is not counted",
    file: "_resume_core.ts",
    from: "    this.#isEndedByPeer = true;\n    this.#received++;\n",
    to: "    this.#isEndedByPeer = true;\n",
    tests: ["resume_test.ts"],
  },
  {
    name: "bytes of a replaced carrier are delivered",
    file: "_resume_core.ts",
    from: "    if (carrier !== this.#carrier) return 0;\n",
    to: "",
    tests: ["resume_test.ts"],
  },
  {
    name: "two hellos of one token both continue",
    file: "_resume_listener.ts",
    from: "    if (hello !== entry.hellos || core.hasEnded) return closeQuietly(connection);\n",
    to: "",
    tests: ["resume_test.ts"],
  },
  {
    name: "bytes received ahead are overtaken by a read",
    file: "_resume_core.ts",
    from: "    if (ahead !== undefined) this.#held.push(ahead, 0, payload, true);\n",
    to: "    if (ahead !== undefined) queueMicrotask(() => this.#held.push(ahead, 0, payload, true));\n",
    tests: ["resume_test.ts"],
  },
  {
    name: "an unfinished hello holds its socket for ever",
    file: "_resume_listener.ts",
    from: "      if (isHello) closeQuietly(connection);\n",
    to: "      if (isHello) return;\n",
    tests: ["resume_test.ts"],
  },
  {
    name: "more connections stay suspended than maxSuspended",
    file: "_resume_listener.ts",
    from: "if (this.#suspended.size <= this.#settings.maxSuspended) return;",
    to: "if (this.#suspended.size > 0) return;",
    tests: ["resume_test.ts"],
  },
  {
    name: "after a freeze the peer has only its remaining time",
    file: "_deadlines.ts",
    from: "this.since === this.#movedTo ? Infinity : this.limit",
    to: "Infinity",
    tests: ["rules_liveness_test.ts"],
  },
  {
    name: "a freeze counts against the handshake timeout of a tunnel",
    file: "tunnel/wait.ts",
    from: "if (late <= LATE) return run();",
    to: "if (late > 0) return run();",
    tests: ["tunnel_handshake_test.ts"],
  },
  {
    name: "a tunnel leaves connections beyond the limit of open files in the kernel",
    file: "tunnel/socket.ts",
    from: "        if (!isPaused && reserve.release()) continue;\n",
    to: "",
    tests: ["tunnel_descriptors_test.ts"],
  },
  {
    name: "a tunnel does not open its reserved descriptor again",
    file: "tunnel/socket.ts",
    from: "|| reserve.hold()) return keepAlive(socket);",
    to: "|| socket !== undefined) return keepAlive(socket);",
    tests: ["tunnel_descriptors_test.ts"],
  },
  {
    name: "a tunnel does not listen again after too many open files",
    file: "tunnel/tcp.ts",
    from: "      this.#server.close();\n      this.#resume();\n",
    to: "",
    tests: ["tunnel_descriptors_test.ts"],
  },
  {
    name: "a tunnel names the limit of open files for each connection",
    file: "tunnel/socket.ts",
    from: "    if (!isDue) return;\n",
    to: "",
    tests: ["tunnel_descriptors_test.ts"],
  },
  {
    name: "the sessions of a tunnel's client have no limits",
    file: "tunnel/link.ts",
    from: "      ...limits.session,\n",
    to: "",
    tests: ["tunnel_limits_test.ts"],
  },
  {
    name: "the sessions of a tunnel's server have no limits",
    file: "tunnel/server.ts",
    from: "      ...session,\n",
    to: "",
    tests: ["tunnel_limits_test.ts"],
  },
  {
    name: "the timeout of a tunnel does not shorten the silence that suspends a connection",
    file: "tunnel/link.ts",
    from: "        silence: limits.silence,\n",
    to: "",
    tests: ["tunnel_limits_test.ts"],
  },
  {
    name: "a tunnel's client without retry gives up when its first connection is cut",
    file: "tunnel/link.ts",
    from: "++cut > MAX_CUT_STARTS",
    to: "++cut > 0",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a tunnel's client without retry connects again for ever while it is cut",
    file: "tunnel/link.ts",
    from: "++cut > MAX_CUT_STARTS",
    to: "++cut < 0",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a tunnel's client does not report that a server without resuming is silent",
    file: "tunnel/link.ts",
    from: "      throw this.#explain(error);\n",
    to: "      throw error;\n",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a tunnel's client reports that a server does not resume before it has answered",
    file: "tunnel/link.ts",
    from: "      const isSluice = isChecked && await checkServer(session, { secret, user }, this.#identity.next());\n",
    to:
      "      this.#reportPlain(carrier);\n      const isSluice = isChecked && await checkServer(session, { secret, user }, this.#identity.next());\n",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a client of a tunnel may run several measurements at the same time",
    file: "tunnel/server.ts",
    from: "    if (this.#measuring.has(session)) throw",
    to: "    if (this.#measuring.has(session) && stream === undefined) throw",
    tests: ["tunnel_measure_test.ts"],
  },
  {
    name: "a measurement of a tunnel may last without end",
    file: "tunnel/measure.ts",
    from: "setDeadline(() => stream.close(), TIME_LIMIT)",
    to: "setDeadline(() => {}, TIME_LIMIT)",
    tests: ["tunnel_measure_test.ts"],
  },
  {
    name: "a check of a tunnel goes on after a failure",
    file: "tunnel/check.ts",
    from: "        if (!result.isOk) return;\n",
    to: "",
    tests: ["tunnel_check_test.ts"],
  },
  {
    name: "a check of a tunnel does not detect that an idle connection was dropped silently",
    file: "tunnel/check.ts",
    from: "      await this.#answer(session, version).catch((error) => {\n",
    to: "      await Promise.resolve().catch((error) => {\n",
    tests: ["tunnel_check_test.ts"],
  },
  {
    name: "a tunnel accepts a secret with a suffix",
    file: "tunnel/access.ts",
    from: "!isEqual(authorization, `Bearer ${this.#secret}`)",
    to: "!authorization.startsWith(`Bearer ${this.#secret}`)",
    tests: ["tunnel_access_test.ts"],
  },
  {
    name: "a tunnel hashes the secret of every request",
    file: "tunnel/access.ts",
    from: "client.digest !== undefined && timingSafeEqual(digest, client.digest)",
    to: "client.digest !== undefined && digest.length === 0",
    tests: ["tunnel_access_test.ts"],
  },
  {
    name: "a tunnel hashes the secret of each client of a user that connects at the same time",
    file: "tunnel/users.ts",
    from: "verifying.get(name) ?? startVerification(",
    to: "startVerification(",
    tests: ["tunnel_access_test.ts"],
  },
  {
    name: "a tunnel hashes the secrets of clients that have given up",
    file: "tunnel/users.ts",
    from: "  gone?.then(leave, leave);\n",
    to: "  gone?.then(() => leave, () => leave);\n",
    tests: ["tunnel_access_test.ts"],
  },
  {
    name: "a tunnel refuses an unknown user without hashing",
    file: "tunnel/access.ts",
    from: "const isRight = await verifySecret(secret, hash, name, gone, client.source);",
    to: "const isRight = account !== undefined && await verifySecret(secret, hash, name, gone, client.source);",
    tests: ["tunnel_access_test.ts"],
  },
  {
    name: "authorize of a tunnel allows whatever is truthy",
    file: "tunnel/access.ts",
    from: "if (isAllowed !== true)",
    to: "if (!isAllowed)",
    tests: ["tunnel_access_test.ts"],
  },
  {
    name: "the rules of a tunnel deny only if the first match denies",
    file: "tunnel/rules.ts",
    from: "this.#entries.findLast(",
    to: "this.#entries.find(",
    tests: ["tunnel_rules_test.ts"],
  },
  {
    name: "* in a rule of a tunnel allows names that resolve to this machine",
    file: "tunnel/rules.ts",
    from: "  if (LOOPBACK.check(address, family)) return /^(.+\\.)?localhost$/.test(hostname);\n",
    to: "",
    tests: ["tunnel_rules_test.ts"],
  },
  {
    name: "* in a rule of a tunnel allows link-local addresses",
    file: "tunnel/rules.ts",
    from: "  if (LINK_LOCAL.check(address, family)) return false;\n",
    to: "",
    tests: ["tunnel_rules_test.ts"],
  },
  {
    name: "a tunnel resolves a checked name again when it connects",
    file: "tunnel/server.ts",
    from: "dial(request.address, stream, { addresses, connectTimeout",
    to: "dial(request.address, stream, { connectTimeout",
    tests: ["tunnel_rules_test.ts"],
  },
  {
    name: "a tunnel does not check the port that the system has chosen",
    file: "tunnel/access.ts",
    from: "if (!this.mayKeep(permit, addr)) throw",
    to: "if (permit.endpoint.port !== 0 && !this.mayKeep(permit, addr)) throw",
    tests: ["tunnel_rules_test.ts"],
  },
  {
    name: "a tunnel passes the port of a living client on",
    file: "tunnel/ports.ts",
    from: "return now === bytesReceived && !readPaused;",
    to: "return !readPaused;",
    tests: ["tunnel_ports_test.ts"],
  },
  {
    name: "a tunnel passes the port of a silent client on to another user",
    file: "tunnel/ports.ts",
    from: "!isOwn && holder.account === account && await",
    to: "!isOwn && await",
    tests: ["tunnel_ports_test.ts"],
  },
  {
    name: "a tunnel waits for a target without a limit",
    file: "tunnel/wait.ts",
    from: "const clear = timeout === Infinity ?",
    to: "const clear = timeout > 0 ?",
    tests: ["tunnel_socket_test.ts"],
  },
  {
    name: "a tunnel leaves the connection to another address of its target open",
    file: "tunnel/socket.ts",
    from: "(other) => other !== connection && other[Symbol.dispose]()",
    to: "() => {}",
    tests: ["tunnel_socket_test.ts"],
  },
  {
    name: "a tunnel replaces a Unix socket that is in use",
    file: "tunnel/unix.ts",
    from: "!Deno.lstatSync(path).isSocket || !isStale(path)",
    to: "!Deno.lstatSync(path).isSocket",
    tests: ["tunnel_socket_test.ts"],
  },
  {
    name: "a tunnel removes the Unix socket of its successor",
    file: "tunnel/unix.ts",
    from: "if (found === undefined || found === file) return",
    to: "if (found === undefined || file !== undefined) return",
    tests: ["tunnel_socket_test.ts"],
  },
  {
    name: "a removed user of a tunnel stays connected",
    file: "tunnel/server.ts",
    from: "this.#activity.abortIf((session) => this.#access.isRemoved(session),",
    to: "this.#activity.abortIf(() => false,",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a tunnel accepts the old secret of a user that has a new one",
    file: "tunnel/access.ts",
    from: " && account.hash === client.hash;",
    to: ";",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a user of a tunnel starts to count anew with new limits",
    file: "tunnel/access.ts",
    from: "return known ?? new Account(user);",
    to: "return new Account(user);",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a tunnel keeps listening where its new rules do not allow it",
    file: "tunnel/ports.ts",
    from: "if (!isAllowed(permit, listening.addr)) release();",
    to: "if (!isAllowed(permit, listening.addr)) continue;",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a replaced listener of a tunnel ends the server",
    file: "tunnel/entrance.ts",
    from: "if (listener === this.#listener) throw error;",
    to: "throw error;",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a tunnel closes its listener before it checks a new certificate",
    file: "tunnel/entrance.ts",
    from: "    if (error instanceof RangeError) throw error;\n",
    to: "",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a tunnel listens anew where only the target of a forward changes",
    file: "tunnel/places.ts",
    from: "  keep(hasSameListen);\n",
    to: "",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a tunnel mixes up forwards with port 0",
    file: "tunnel/places.ts",
    from: "  keep((one, other) => hasSameListen(one, other) && isEqual(one, other));\n",
    to: "",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a rejected update of a tunnel leaves an address open",
    file: "tunnel/client.ts",
    from: "for (const opening of [...opened.values(), ...bound.values()]) opening.close();",
    to: "for (const opening of bound.values()) opening.close();",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a tunnel stays at its old server after an update",
    file: "tunnel/link.ts",
    from: "    else session?.close({ drain: true, timeout: Infinity });\n",
    to: "",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "a tunnel cuts connections when it changes its server",
    file: "tunnel/link.ts",
    from: "else session?.close({ drain: true, timeout: Infinity });",
    to: "else session?.abort();",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "half of a configuration file is applied",
    file: "tunnel/configured.ts",
    from: "      if (server !== undefined) await this.#server!.update(this.#config.server!);\n",
    to: "",
    tests: ["tunnel_config_test.ts"],
  },
  {
    name: "a configuration file is applied again when another file in its folder changes",
    file: "tunnel/configured.ts",
    from: "readText(path) !== text)",
    to: "readText(path) !== undefined)",
    tests: ["tunnel_config_test.ts"],
  },
  {
    name: "a configuration file is watched itself, not its folder",
    file: "tunnel/watch.ts",
    from: "[dirname(path), dirname(followLink(path))]",
    to: "[path, followLink(path)]",
    tests: ["tunnel_config_test.ts"],
  },
  {
    name: "a missing variable in a configuration file is empty",
    file: "tunnel/config.ts",
    from: "if (found === undefined) throw new RangeError(`${path} names",
    to: "if (found === null) throw new RangeError(`${path} names",
    tests: ["tunnel_config_test.ts"],
  },
  {
    name: "a name may occur twice in a configuration file",
    file: "tunnel/json.ts",
    from: "if (this.offsets.has(inner)) throw",
    to: "if (false) throw",
    tests: ["tunnel_config_test.ts"],
  },
  {
    name: "an incomplete request is answered like a failing target",
    file: "tunnel/handshake.ts",
    from: "request === undefined || error instanceof RangeError",
    to: "error instanceof RangeError",
    tests: ["tunnel_handshake_test.ts"],
  },
  {
    name: "a host name in a SOCKS request is logged without escaping",
    file: "tunnel/socks5.ts",
    from: "return printable(await readText(client));",
    to: "return await readText(client);",
    tests: ["tunnel_socks5_test.ts"],
  },
  {
    name: "the version of a SOCKS request is not checked",
    file: "tunnel/socks5.ts",
    from: "  checkVersion(again!);\n",
    to: "",
    tests: ["tunnel_socks5_test.ts"],
  },
  {
    name: "lines of an unread log wait without a bound",
    file: "tunnel/output.ts",
    from: "this.#waiting.length + text.length > MAX_WAITING",
    to: "text.length > MAX_WAITING",
    tests: ["tunnel_output_test.ts"],
  },
  {
    name: "the tunnel command waits for a log that is not read",
    file: "tunnel/display.ts",
    from: "await Promise.race([late, Promise.all([this.#out.flush(), this.#errors.flush()])]);",
    to: "await Promise.all([this.#out.flush(), this.#errors.flush()]);",
    tests: ["tunnel_output_test.ts"],
  },
  {
    name: "forwarded stdin keeps the tunnel after its target has closed",
    file: "tunnel/stdio.ts",
    from: "if (this.#endRead !== undefined) this.#clear =",
    to: "if (false) this.#clear =",
    tests: ["tunnel_cli_test.ts"],
  },
  {
    name: "forwarded stdin is cut where its target ends its direction",
    file: "tunnel/stdio.ts",
    from: "this.#clear = setDeadline(this.#endRead, MAX_PAUSE);",
    to: "this.#endRead();",
    tests: ["tunnel_cli_test.ts"],
  },
  {
    name: "sluice cert overwrites files",
    file: "tunnel/arguments.ts",
    from: "createNew: true",
    to: "createNew: false",
    tests: ["tunnel_cli_test.ts"],
  },
  {
    name: "bytes of a forwarded connection are counted at its end only",
    file: "tunnel/accounting.ts",
    from: "    this.#sums.sent += bytes;\n",
    to: "",
    tests: ["tunnel_status_test.ts"],
  },
  {
    name: "clients can add any number of sums",
    file: "tunnel/accounting.ts",
    from: "this.#sums.size >= MAX_SUMS && forward !== OTHER",
    to: "this.#sums.size < 0",
    tests: ["tunnel_accounting_test.ts"],
  },
  {
    name: "a peer chooses the statuses that are counted",
    file: "tunnel/accounting.ts",
    from: "STATUSES.includes(status) ? String(status) : OTHER",
    to: "String(status)",
    tests: ["tunnel_accounting_test.ts"],
  },
  {
    name: "a failed connection is reported as closed",
    file: "tunnel/forward.ts",
    from: "    failed = toError(error);\n",
    to: "",
    tests: ["tunnel_accounting_test.ts"],
  },
  {
    name: "each target that a wildcard allows has sums of its own",
    file: "tunnel/server.ts",
    from: 'this.#named.has(address) ? address : "*"',
    to: "address",
    tests: ["tunnel_status_test.ts"],
  },
  {
    name: "a web page reads the status through a name of its own",
    file: "tunnel/status.ts",
    from: "this.#isLocal && !/",
    to: "!this.#isLocal && !/",
    tests: ["tunnel_status_test.ts"],
  },
  {
    name: "the status is served to other machines without insecure",
    file: "tunnel/status.ts",
    from: 'if (listen !== undefined) checkExposed("status", listen, insecure);',
    to: 'if (listen !== undefined) checkExposed("status", listen, insecure || true);',
    tests: ["tunnel_status_test.ts"],
  },
  {
    name: "a client that is not connected is healthy",
    file: "tunnel/client.ts",
    from: "isReady: () => this.#servers.up !== undefined",
    to: "isReady: () => true",
    tests: ["tunnel_status_test.ts"],
  },
  {
    name: "a header of the PROXY protocol is accepted from any address",
    file: "tunnel/proxy_listener.ts",
    from: "if (isProxy(peer.hostname)) {",
    to: "if (isProxy !== undefined) {",
    tests: ["tunnel_proxy_test.ts"],
  },
  {
    name: "a proxy that sends no header keeps others waiting",
    file: "tunnel/prepared_listener.ts",
    from: "      this.#passing.add(passed);\n",
    to: "      this.#passing.add(passed);\n      await passed;\n",
    tests: ["tunnel_proxy_test.ts"],
  },
  {
    name: "handshakes at a server of the tunnel are not limited",
    file: "tunnel/handshake_limit.ts",
    from: "if (this.#sockets.size >= MAX_HANDSHAKES) ",
    to: "if (this.#sockets.size > 10 * MAX_HANDSHAKES) ",
    tests: ["tunnel_proxy_test.ts"],
  },
  {
    name: "sessions behind a proxy count as handshakes",
    file: "tunnel/prepared_listener.ts",
    from: "      this.#pending.remove(socket);\n      if (prepared",
    to: "      if (prepared",
    tests: ["tunnel_proxy_test.ts"],
  },
  {
    name: "a header of the PROXY protocol may never end",
    file: "tunnel/proxy_listener.ts",
    from: "await withDeadline(socket, readProxyHeader(socket))",
    to: "await readProxyHeader(socket)",
    tests: ["tunnel_proxy_test.ts"],
  },
  {
    name: "a client of the tunnel retries what the server refuses for good",
    file: "tunnel/link.ts",
    from: "error.status < 500",
    to: "error.status < 0",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a client of the tunnel accepts connections while the server is away",
    file: "tunnel/link.ts",
    from: "      this.#host.unavailable();\n",
    to: "",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a client of the tunnel does not listen again when the server is back",
    file: "tunnel/link.ts",
    from: "    await this.#host.available();\n",
    to: "",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a client of the tunnel reports each failed attempt",
    file: "tunnel/link.ts",
    from: "if (message !== this.#lastMessage) this",
    to: "this",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a new connection does not wait for a suspended server",
    file: "tunnel/servers.ts",
    from: "const find = () => this.#links.find((link) => link.isUp && !tried",
    to: "const find = () => this.#links.find((link) => link.session !== undefined && !tried",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a tunnel cannot be shut down while its connection is suspended",
    file: "tunnel/client.ts",
    from: "if (link.isSuspended) session?.abort();",
    to: "",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "a server that does not resume is not used",
    file: "tunnel/carrier.ts",
    from: "if (error === undefined) resolve(undefined);",
    to: "if (error === undefined) reject(new Error());",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "the protocol of a server is not named",
    file: "tunnel/carrier.ts",
    from: "if (byte === TLS_ALERT)",
    to: "if (byte === -1)",
    tests: ["tunnel_link_test.ts"],
  },
  {
    name: "the client does not learn the visitor of a reverse forward",
    file: "tunnel/server.ts",
    from: 'ask("CONNECT", visitorHeader(from))',
    to: 'ask("CONNECT", "")',
    tests: ["tunnel_proxy_test.ts"],
  },
  {
    name: "a visitor of a forward is not named to a target that expects a header",
    file: "tunnel/client.ts",
    from: "await writeFirst(stream, proxyHeaderOf(from))",
    to: "await writeFirst(stream, encodeProxyHeader(undefined))",
    tests: ["tunnel_proxy_test.ts"],
  },
  {
    name: "a PROXY protocol header of LOCAL sets the address of the client",
    file: "tunnel/proxy_protocol.ts",
    from: "  if (command === LOCAL) return undefined;\n",
    to: "",
    tests: ["tunnel_proxy_test.ts"],
  },
  {
    name: "a PROXY protocol header of UDP is accepted",
    file: "tunnel/proxy_protocol.ts",
    from: "    case TCP4:\n",
    to: "    case TCP4 + 1:\n    case TCP4:\n",
    tests: ["tunnel_proxy_test.ts"],
  },
  {
    name: "a freeze counts against the credit timeout after FIN",
    file: "_send_half.ts",
    from: "const isLate = now - due > TIMER_LAG_MS && !isExcused;",
    to: "const isLate = now < due && !isExcused;",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "a stream cut after the peer's FIN reads as a clean end",
    file: "_receive_half.ts",
    from: '    this.#drop();\n    this.#state = "cut";\n',
    to: '    this.#drop();\n    this.#state = "failed";\n',
    tests: ["rules_limits_test.ts"],
  },
  {
    name: "a reset with unsent data counts as a clean close",
    file: "_session_core.ts",
    from: "      !this.writer.hasUnsentData && this.decoder",
    to: "      this.decoder",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "a removed stream refers to others of its bucket",
    file: "_table.ts",
    from: "    entry.nextInBucket = undefined;\n    this.#size--;",
    to: "    this.#size--;",
    tests: ["table_test.ts"],
  },
  {
    name: "an address that is in use for a moment is not listened on again",
    file: "tunnel/listen.ts",
    from: "if (!isInUse || performance",
    to: "if (isInUse || performance",
    tests: ["tunnel_update_test.ts"],
  },
  {
    name: "removing a stream removes a later one with the same id",
    file: "_table.ts",
    from: "while (found !== undefined && found !== entry) found",
    to: "while (found !== undefined && found.id !== entry.id) found",
    tests: ["table_test.ts"],
  },
  {
    name: "thousands of streams are notified of the end without yielding",
    file: "_session_core.ts",
    from: "      if (stream.notifyWaiters() && ++notified % NOTIFY_BATCH === 0) await slice.yieldToEventLoop();\n",
    to: "      if (stream.notifyWaiters()) notified++;\n",
    tests: ["rules_close_test.ts"],
  },
  {
    name: "FIN overtakes a SYN that waits for room",
    file: "_send_half.ts",
    from: "    this.#isWriting = true;\n    const waiting = this.#waiting = new Waiting();\n",
    to: "    const waiting = this.#waiting = new Waiting();\n",
    tests: ["session_test.ts"],
  },
  {
    name: "a frame dropped by the session's end counts as sent",
    file: "_writer.ts",
    from: "    if (!frame.isEncoded) throw ENDED;\n",
    to: "",
    tests: ["rules_open_test.ts", "rules_close_test.ts", "writer_test.ts"],
  },
  {
    name: "a write whose frame the end of the session took back counts as sent",
    file: "_send_half.ts",
    from: "          if (!frame.isEncoded) break;\n",
    to: "",
    tests: ["rules_close_test.ts", "stream_test.ts", "rules_credit_test.ts"],
  },
  {
    name: "a view of half a buffer is kept although its own cost exceeds the bound",
    file: "_chunks.ts",
    from: " >= bytes.buffer.byteLength + VIEW_COST_BYTES)",
    to: " >= bytes.buffer.byteLength)",
    tests: ["rules_limits_test.ts"],
  },
  {
    name: "yielding waits for another thread",
    file: "_clock.ts",
    from: "setImmediate === undefined ? leave() : passTasks(setImmediate)",
    to: "leave()",
    tests: ["timeslice_test.ts"],
  },
  {
    name: "a peer that always has data to read starves the event loop",
    file: "_reader.ts",
    from: "    if (!flood.isExhausted) return await this.#yieldUnlessBehind();\n",
    to: "    if (!flood.isExhausted) return now;\n",
    tests: ["session_test.ts"],
  },
  {
    name: "a transport whose writes never block starves the event loop",
    file: "_writer.ts",
    from: "          if (slice.isExpired(now)) now = await slice.yieldToEventLoop();\n",
    to: "",
    tests: ["session_test.ts"],
  },
  {
    name: "writes cut by the session's end share one bytesWritten",
    file: "_session_core.ts",
    from: "bytesWritten > 0 ? own() : sharedByWrites ??= own()",
    to: "sharedByWrites ??= own()",
    tests: ["stream_test.ts"],
  },
  {
    name: "a read cut by the session's end rejects with the error of a write",
    file: "_session_core.ts",
    from: "      if (bytesWritten === undefined) return shared ??= own();\n      return bytesWritten > 0 ?",
    to: "      return bytesWritten! > 0 ?",
    tests: ["stream_test.ts"],
  },
  {
    name: "a join with a stuck write does not notice the loss of its stream",
    file: "serve.ts",
    from: "    if (error !== undefined) lost(error);\n",
    to: "",
    tests: ["serve_test.ts"],
  },
  {
    name: "a join blocks the event loop while a read returns 0",
    file: "serve.ts",
    from: "      if (count === 0) await clock.yieldToEventLoop();\n",
    to: "",
    tests: ["serve_test.ts"],
  },
  {
    name: "a join blocks the event loop while a write returns 0",
    file: "serve.ts",
    from: "        if (written === 0) await clock.yieldToEventLoop();\n",
    to: "",
    tests: ["serve_test.ts"],
  },
  {
    name: "a join loses the data of a write that returns no number",
    file: "serve.ts",
    from: "checkCount(await to.write(p.subarray(at, count)), count - at);",
    to: "await to.write(p.subarray(at, count));",
    tests: ["serve_test.ts"],
  },
  {
    name: "a join writes what it has read after it has settled",
    file: "serve.ts",
    from: "      if (isOver()) return total;\n      if (count !== null",
    to: "      if (count !== null",
    tests: ["serve_test.ts"],
  },
  {
    name: "a join that refuses one side leaves the other open",
    file: "serve.ts",
    from: "    for (const side of [a, b]) {\n      if (side instanceof",
    to: "    for (const side of [] as typeof a[]) {\n      if (side instanceof",
    tests: ["serve_test.ts"],
  },
  {
    name: "a join drops complete data of a lost stream",
    file: "serve.ts",
    from: "    if (core?.receiving.isWhole) await rest.catch(() => {});\n",
    to: "",
    tests: ["serve_test.ts"],
  },
  {
    name: "an invalid chunk of a web stream does not abort the stream",
    file: "_web_streams.ts",
    from: "      this.abort();\n      throw error;\n",
    to: "      throw error;\n",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "an idle pipe into a stream does not notice the stream's loss",
    file: "_web_streams.ts",
    from: "      controller.error(error);\n      this.abort();\n",
    to: "",
    tests: ["web_streams_test.ts"],
  },
  {
    name: "late data for a closed stream pauses the peer",
    file: "_session_core.ts",
    from: "    if (this.#forget(stream) && !stream.isEndedByPeer) this.flood.expectLateData();\n",
    to: "    this.#forget(stream);\n",
    tests: ["session_test.ts"],
  },
  {
    name: "a burst of streams is refused before the acceptors ran",
    file: "_acceptor.ts",
    from: "      } else if (this.#hadTurn) {\n",
    to: "      } else if (!this.#hadTurn) {\n",
    tests: ["accept_test.ts"],
  },
  {
    name: "each SYN for a full channel waits a turn of its own",
    file: "_acceptor.ts",
    from: "        this.#host.refuseArrived(stream);\n",
    to: "        this.#host.refuseArrived(stream);\n        this.#hadTurn = false;\n",
    tests: ["accept_test.ts"],
  },
  {
    name: "stalled streams keep their credit while room is scarce",
    file: "_window.ts",
    from: "    if (!this.#open || unread < this.#pool.share ||",
    to: "    if (!this.#open || unread >= 0 || unread < this.#pool.share ||",
    tests: ["window_test.ts"],
  },
  {
    name: "streams opened while room is scarce start with a whole window",
    file: "_window.ts",
    from: "    return this.#size < INITIAL_WINDOW;\n",
    to: "    return this.#pool.first < INITIAL_WINDOW;\n",
    tests: ["window_test.ts", "rules_credit_test.ts"],
  },
  {
    name: "a stream whose credit was revoked receives none after it was read",
    file: "_window.ts",
    from: "if (!isFirst && !isLow && since <",
    to: "if (!isFirst && since <",
    tests: ["window_test.ts"],
  },
  {
    name: "credit that was revoked before the first update does not return",
    file: "_window.ts",
    from: "this.#size === INITIAL_WINDOW && this.#limit === INITIAL_WINDOW",
    to: "this.#size === INITIAL_WINDOW",
    tests: ["window_test.ts"],
  },
  {
    name: "the first update waits although earlier streams learnt a larger window",
    file: "_window.ts",
    from: "isFirst && this.#size === INITIAL_WINDOW && this.#limit",
    to: "isFirst && this.#limit",
    tests: ["window_test.ts"],
  },
  {
    name: "a new stream starts with a window that had to shrink",
    file: "_window.ts",
    from: "this.#learnt = Math.max(this.first, window)",
    to: "this.#learnt = window",
    tests: ["window_test.ts"],
  },
  {
    name: "version 1 cuts only half of the stalled streams",
    file: "_stalled.ts",
    from: "if (stream.unread < share || (isGentle && this.#windows.unread <= this.#capacity / 2)) break;",
    to: "if (stream.unread < share || this.#windows.unread <= this.#capacity / 2) break;",
    tests: ["rules_limits_test.ts"],
  },
  {
    name: "a close of a WebSocket with an error code counts as a clean end",
    file: "_web_socket.ts",
    from: "if (code !== NORMAL && code !== NO_STATUS && !isOwnEnd)",
    to: "if ((code === ABNORMAL || code === 0) && !isOwnEnd)",
    tests: ["websocket_test.ts"],
  },
  {
    name: "the overhead of tiny messages of a WebSocket is not counted",
    file: "_web_socket.ts",
    from: "const MESSAGE_OVERHEAD_BYTES = 256;",
    to: "const MESSAGE_OVERHEAD_BYTES = 0;",
    tests: ["websocket_test.ts"],
  },
  {
    name: "loops that have yielded resume together",
    file: "_timeslice.ts",
    from: "} while (clock.now() - polledAt < MAX_SLICE_MS);",
    to: "} while (yielded.length > 0);",
    tests: ["timeslice_test.ts"],
  },
  {
    name: "thousands of new streams are passed on without a yield",
    file: "_acceptor.ts",
    from: "    return arrived.length < MAX_ARRIVED;\n",
    to: "    return true;\n",
    tests: ["accept_test.ts"],
  },
  {
    name: "the buffer of a message of a WebSocket is not freed",
    file: "_adapt.ts",
    from: "this.buffer = new ReadBuffer(bytes, this.pushed !== undefined);",
    to: "this.buffer = new ReadBuffer(bytes, false);",
    tests: ["websocket_test.ts"],
  },
  {
    name: "the overhead of a message of a WebSocket stays counted after the message was read",
    file: "_web_socket.ts",
    from: "this.#queued -= message.length + MESSAGE_OVERHEAD_BYTES;",
    to: "this.#queued -= message.length;",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a write to a WebSocket does not wait for its queue",
    file: "_web_socket.ts",
    from: "    if (this.#isFull) await this.#waitForRoom();\n",
    to: "",
    tests: ["websocket_test.ts"],
  },
  {
    name: "the pause of a write is not ended by the close of its WebSocket",
    file: "_web_socket.ts",
    from: "    this.#wake?.();\n    this.#endMessages();\n",
    to: "    this.#endMessages();\n",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a write to a closed WebSocket fails before the session has read the messages",
    file: "_web_socket.ts",
    from: "    if (this.#listener === undefined) this.#closed.resolve();\n",
    to: "    this.#closed.resolve();\n",
    tests: ["websocket_test.ts"],
  },
  {
    name: "what arrived before a WebSocket failed is lost",
    file: "_web_socket.ts",
    from: "    const held = this.tryReadChunk();\n",
    to: "    if (this.#failure !== undefined) throw this.#failure;\n    const held = this.tryReadChunk();\n",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a message of a WebSocket is decoded before those that wait",
    file: "_web_socket.ts",
    from: "  #hold(chunk: Uint8Array): void {\n    this.#isAwaited = false;\n",
    to: "  #hold(chunk: Uint8Array): void {\n",
    tests: ["websocket_test.ts"],
  },
  {
    name: "the rest of a message shares the buffer that its first part frees",
    file: "_reader.ts",
    from: "return new Uint8Array(chunk.subarray(this.#decodedTo));",
    to: "return chunk.subarray(this.#decodedTo);",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a chunk of readable is a view of the Buffer of the transport",
    file: "_chunks.ts",
    from: "const copied = new Uint8Array(rest);",
    to: "const copied = rest.slice();",
    tests: ["chunks_test.ts", "node_stream_test.ts"],
  },
  {
    name: "a message that is a Buffer shares the memory of its socket",
    file: "_web_socket.ts",
    from: "undefined = new Uint8Array(data);",
    to: "undefined = data instanceof Uint8Array ? data.slice() : new Uint8Array(data);",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a WebSocket that keeps what it sends gets a view of a Buffer",
    file: "_web_socket.ts",
    from: "new Uint8Array(part));",
    to: "part.slice());",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a message is decoded in its event although its reader has not read again",
    file: "_reader.ts",
    from: "    if (!this.#isIdle || this.#serving > 0 || (isExpired && slice.isWatched)) return chunk;\n",
    to: "    if (!this.#isIdle || (isExpired && slice.isWatched)) return chunk;\n",
    tests: ["websocket_test.ts"],
  },
  {
    name: "answers are held when all readers that a message served read again before the loop",
    file: "_reader.ts",
    from: "    this.#isIdle = false;\n    this.#startBatch();\n",
    to: "    this.#startBatch();\n",
    tests: ["websocket_test.ts"],
  },
  {
    name: "answers to the first part of a message are held after its rest was decoded",
    file: "_reader.ts",
    from: "      this.#writer.release();\n      return new Uint8Array",
    to: "      return new Uint8Array",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a flood of messages that are decoded in their events does not pause reading",
    file: "_reader.ts",
    from: "this.#host.mustPause || this.#host.flood.isExhausted;",
    to: "this.#host.mustPause;",
    tests: ["websocket_test.ts"],
  },
  {
    name: "frames encoded while a WebSocket sends are lost",
    file: "_writer.ts",
    from: "      leaving.append(this.#filling);\n",
    to: "",
    tests: ["websocket_test.ts"],
  },
  {
    name: "each batch of frames ends with a small message",
    file: "_writer.ts",
    from: "length < COALESCE_BYTES ? length : length - length % MESSAGE_BYTES;",
    to: "length;",
    tests: ["websocket_test.ts"],
  },
  {
    name: "two reads at once of a WebSocket lose the rest of a message",
    file: "_web_socket.ts",
    from: "    if (this.#isReading) await (this.#readQueue ??= new Gate()).wait();\n",
    to: "",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a text message of a WebSocket is ignored",
    file: "_web_socket.ts",
    from: "    if (!(data instanceof ArrayBuffer || data instanceof Uint8Array)) {\n",
    to:
      '    if (typeof data === "string") return;\n    if (!(data instanceof ArrayBuffer || data instanceof Uint8Array)) {\n',
    tests: ["websocket_test.ts"],
  },
  {
    name: "a WebSocket that keeps what it sends gets a view of the write buffer",
    file: "_web_socket.ts",
    from: "this.#socket.send(this.#isCopying ? part : new Uint8Array(part));",
    to: "this.#socket.send(part);",
    tests: ["websocket_test.ts"],
  },
  {
    name: "too much unread in a WebSocket does not end a session that does not read",
    file: "_web_socket.ts",
    from: "      return this.#listener?.overflowed(this.#failure!);\n",
    to: "",
    tests: ["websocket_test.ts"],
  },
  {
    name: "an error of a WebSocket without a close does not end its session",
    file: "_web_socket.ts",
    from: '    clock.pass(() => clock.pass(() => this.#end(ABNORMAL, "")));\n',
    to: "",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a WebSocket closed before it opened stays open",
    file: "_web_socket.ts",
    from: "    if (this.#closedWith !== undefined) this.#socket.close(this.#closedWith);\n",
    to: "",
    tests: ["websocket_test.ts"],
  },
  {
    name: "the WebSocket of an aborted session is closed in order",
    file: "_web_socket.ts",
    from: 'this.#close(GOING_AWAY, "aborted");',
    to: "this.#close(NORMAL);",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a socket of npm:ws that is the global WebSocket gets no copies",
    file: "_web_socket.ts",
    from: "    socket.pause === undefined && ",
    to: "    ",
    tests: ["websocket_test.ts"],
  },
  {
    name: "the WebSocket of Node gets views of the write buffer",
    file: "_web_socket.ts",
    from: " && process?.versions?.undici === undefined;",
    to: ";",
    tests: ["websocket_test.ts"],
  },
  {
    name: "Deno gives up a silent client before its session does",
    file: "websocket.ts",
    from: "upgrade(request, { idleTimeout });",
    to: "upgrade(request);",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a paused WebSocket stays paused when it is closed",
    file: "_web_socket.ts",
    from: "    }\n    // A paused socket does not receive the close frame of the peer.\n    this.#resume();\n",
    to: "    }\n",
    tests: ["websocket_test.ts"],
  },
  {
    name: "a request after the listener of WebSockets was closed is upgraded",
    file: "websocket.ts",
    from: "if (this.#connections.closed || this.#connections.size >= BACKLOG)",
    to: "if (this.#connections.size >= BACKLOG)",
    tests: ["websocket_test.ts"],
  },
  {
    name: "WebSockets that wait for accept() outlive their listener",
    file: "websocket.ts",
    from: "    for (const connection of this.#connections.drain()) connection.close();\n",
    to: "",
    tests: ["websocket_test.ts"],
  },
  {
    name: "an error of a stream of Node counts as its end",
    file: "_node_stream.ts",
    from: "      if (this.#failure !== undefined) throw this.#failure;\n",
    to: "      if (this.#failure !== undefined) return null;\n",
    tests: ["node_stream_test.ts"],
  },
  {
    name: "a stream of Node that is closed before its end counts as ended",
    file: "_node_stream.ts",
    from: '      if (this.#hasClosed) throw new Error("The stream of Node was destroyed before its end");\n',
    to: "      if (this.#hasClosed) return null;\n",
    tests: ["node_stream_test.ts"],
  },
  {
    name: "the end of a stream of Node before its session began is missed",
    file: "_node_stream.ts",
    from: "    this.#hasEnded = readableEnded;\n    this.#hasClosed = destroyed;\n",
    to: "    this.#hasEnded = this.#hasClosed = false;\n",
    tests: ["node_stream_test.ts"],
  },
  {
    name: "a stream of Node that passes on what is written gets a view of the write buffer",
    file: "_node_stream.ts",
    from: "this.#isSocket ? p.subarray(0, MAX_WRITE_BYTES) : p.slice(0, MAX_WRITE_BYTES)",
    to: "p.subarray(0, MAX_WRITE_BYTES)",
    tests: ["node_stream_test.ts"],
  },
  {
    name: "a web stream that keeps what is written gets a view of the write buffer",
    file: "_adapt.ts",
    from: "bytes.slice(0, MAX_STREAM_WRITE_BYTES)",
    to: "bytes.subarray(0, MAX_STREAM_WRITE_BYTES) as Uint8Array<ArrayBuffer>",
    tests: ["transport_test.ts"],
  },
  {
    name: "a frame is reported in the middle of decoding",
    file: "_trace.ts",
    from: "      queueMicrotask(this.#report);\n",
    to: "      this.#report();\n",
    tests: ["trace_test.ts"],
  },
];

const ROOT = `${import.meta.dirname}/../..`;
// Timeouts of a run of the simulation, and of one quick test, in milliseconds: a bug may make them hang.
const LIMIT = 10 * 60_000;
const QUICK_LIMIT = 2 * 60_000;

/** Runs the tests for each bug; rejects if a bug is not found. */
export async function run(args: string[]): Promise<void> {
  const { seeds, only = "", carriers } = parse(args, { seeds: integer(4000, 1), only: anyText, carriers: flag });
  const mutants = MUTANTS.filter(({ name, isOfCarriers }) => name.includes(only) && (isOfCarriers || !carriers));
  await using folder = await makeFolder("mutants");
  const copy = folder.path;
  await copyRepository(copy);
  const tests = [...new Set(mutants.flatMap(({ tests = [] }) => tests))];
  for (const mutant of mutants) plant(mutant, await Deno.readTextFile(`${copy}/${mutant.file}`));
  // Tests that fail without a bug prove nothing.
  for (const mutant of mutants.filter((one, n) => mutants.findIndex((other) => isFoundAlike(one, other)) === n)) {
    const sound = await simulation(copy, mutant, seeds);
    if (!sound.success) throw new Error(`The simulation fails without any bug:\n${sound.output}`);
  }
  if (tests.length > 0) {
    const quick = await quickTests(copy, tests, LIMIT);
    if (!quick.success) throw new Error(`The tests fail without any bug:\n${quick.output}`);
  }

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
      `${finder === undefined ? "NOT FOUND" : "found"}: ${mutant.name} (${finder ?? "no test failed"}, ${seconds} s)`,
    );
  }
  console.log(`${found} of ${mutants.length} found`);
  if (found < mutants.length) throw new Error(`${mutants.length - found} bugs were not found`);
}

/** Returns the text with the bug; throws if `from` does not occur exactly once. */
export function plant({ name, file, from, to }: Mutant, text: string): string {
  const parts = text.split(from);
  if (parts.length === 2) return parts.join(to);
  throw new Error(`"${name}" cannot be planted: its text occurs ${parts.length - 1} times in ${file}:\n${from}`);
}

/** Returns the name of the test that finds the bug, if one does. */
async function find(copy: string, mutant: Mutant, seeds: number): Promise<string | undefined> {
  const checked = await deno(copy, ["check", "mod.ts", "resume.ts", "websocket.ts"]);
  if (!checked.success) throw new Error(`"${mutant.name}" does not compile:\n${checked.output}`);
  for (const test of mutant.isOfCarriers ? [] : mutant.tests ?? []) {
    if (!(await quickTests(copy, [test], QUICK_LIMIT)).success) return `tests/${test}`;
  }
  // The simulation has no tunnel.
  if (mutant.file.startsWith("tunnel/")) return undefined;
  const { success, output } = await simulation(copy, mutant, seeds);
  return success ? undefined : `simulation, ${/^again: .* simulate (.*--seed \d+)$/m.exec(output)?.[1] ?? "a hang"}`;
}

function isFoundAlike(one: Mutant, other: Mutant): boolean {
  return Boolean(one.isOfCarriers) === Boolean(other.isOfCarriers);
}

function simulation(copy: string, { isOfCarriers }: Mutant, seeds: number): Promise<Result> {
  return deno(copy, [
    "run",
    "-A",
    "--no-check",
    "tests/deep/main.ts",
    "simulate",
    ...isOfCarriers ? ["--carriers"] : [],
    "--fail-fast",
    "--seeds",
    `${seeds}`,
  ]);
}

function quickTests(copy: string, files: string[], limit: number): Promise<Result> {
  return deno(copy, ["test", "-A", "--no-check", "--fail-fast", ...files.map((file) => `tests/${file}`)], limit);
}

interface Result {
  success: boolean;
  output: string;
}

async function deno(cwd: string, args: string[], limit = LIMIT): Promise<Result> {
  const child = new Deno.Command(Deno.execPath(), {
    args,
    cwd,
    env: { NO_COLOR: "1" },
    stdin: "null",
    signal: AbortSignal.timeout(limit),
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
