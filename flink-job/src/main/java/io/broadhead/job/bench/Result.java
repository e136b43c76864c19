// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

/**
 * What one contender took in one cell; a line of the CSV file.
 *
 * @param microseconds of a step
 * @param timesOurs how many times our own time, of samples taken one after the other
 * @param disturbed whether other processes worked meanwhile
 * @param garbageBytes what a step leaves to the garbage collector; NaN where nobody counted
 */
public record Result(
    Cell cell,
    String contender,
    Contender.Kind kind,
    double microseconds,
    double timesOurs,
    int samples,
    boolean disturbed,
    double garbageBytes) {

  /** New tokens of a second. */
  public double tokensPerSecond() {
    return cell.shape().newTokens() / microseconds * 1e6;
  }

  /** Bytes of the cache, or of an update, in a second; in 10^9. */
  public double gigabytesPerSecond() {
    return cell.shape().bytes() / microseconds * 1e-3;
  }

  /** Operations of a second, in 10^9. */
  public double gigaflopsPerSecond() {
    return cell.shape().flops() / microseconds * 1e-3;
  }
}
