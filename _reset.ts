/**
 * The signal that aborts a stream: two adjacent NOP frames, the first with the id of the stream, the second with its
 * bitwise complement. smux has no frame for it. Other peers ignore the id of a NOP, and see only the FIN of the stream.
 *
 * @module
 */

/** Returns the id of the second NOP for the id of the first, and the reverse. */
export function complement(id: number): number {
  return ~id >>> 0;
}

/** Recognizes the signal among the received NOPs. */
export class ResetDetector {
  // The last NOP: its id, and its position among the received frames.
  #id = 0;
  #position = -1;

  /**
   * Receives a NOP.
   *
   * @param id Its id.
   * @param position Its position among the received frames.
   * @returns Id of the stream that the peer has aborted; `undefined` if the NOP completes no signal.
   */
  nop(id: number, position: number): number | undefined {
    const first = complement(id);
    const isSecond = this.#id === first && this.#position + 1 === position;
    this.#id = id;
    // The second NOP of a signal must not become the first of another.
    this.#position = isSecond ? -1 : position;
    return isSecond ? first : undefined;
  }
}
