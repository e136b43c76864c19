// SPDX-License-Identifier: Apache-2.0
package io.broadhead.kernel;

/**
 * What was opened.
 *
 * @param tier instruction set tier of the CPU kernels, or the GPU architecture
 * @param device processor or GPU name
 * @param reason why this backend and tier
 * @param threads CPU threads of one step
 * @param freeMemory bytes of a GPU that were free when it was opened; 0 for the CPU, whose memory
 *     is the machine's
 * @param overlaps whether steps that were begun compute beside the caller, as on a GPU
 */
public record EngineInfo(
    String backend,
    String tier,
    String device,
    String reason,
    int threads,
    long freeMemory,
    boolean overlaps) {
  /** What was chosen and why, for a log or a terminal. */
  public String describe() {
    return "backend "
        + backend
        + ", tier "
        + tier
        + ", "
        + threads
        + (threads == 1 ? " thread" : " threads")
        + (device.isEmpty() ? "" : ", " + device)
        + " ("
        + reason
        + ")";
  }
}
