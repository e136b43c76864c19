// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.attention.AttentionConfig;
import io.broadhead.kernel.ErrorCode;
import java.io.Serializable;
import java.time.Duration;
import org.apache.flink.configuration.ReadableConfig;

/**
 * The options of an operator, read and checked when the job is submitted. Immutable.
 *
 * @param deviceResource external resource that has the device, or null
 * @param shards that sequences are divided into; written down with saved caches
 * @param batchMaxTokens new tokens of a step; 0: each batch is a step by itself
 * @param batchMaxDelay how long a batch waits for others to join it
 */
record OperatorSettings(
    AttentionConfig attention,
    String deviceResource,
    OnBadRow onBadRow,
    StateMode state,
    int shards,
    int batchMaxTokens,
    Duration batchMaxDelay)
    implements Serializable {
  /** Flink's timers count milliseconds. */
  private static final Duration LEAST_DELAY = Duration.ofMillis(1);

  /**
   * @param shards that sequences are divided into
   * @throws IllegalArgumentException naming a key that there is not, or whose value is not accepted
   */
  static OperatorSettings of(ReadableConfig options, int shards) {
    PagedAttentionOptions.requireKnownKeys(options);
    int maxTokens =
        PagedAttentionOptions.atLeast(PagedAttentionOptions.BATCH_MAX_TOKENS, options, 0);
    Duration maxDelay = options.get(PagedAttentionOptions.BATCH_MAX_DELAY);
    if (!maxDelay.isZero() && maxDelay.compareTo(LEAST_DELAY) < 0) {
      throw new IllegalArgumentException(
          PagedAttentionOptions.BATCH_MAX_DELAY.key()
              + ": expected 0 or at least "
              + LEAST_DELAY
              + ", got "
              + maxDelay);
    }
    if (maxTokens == 0 && !maxDelay.isZero()) {
      throw new IllegalArgumentException(
          PagedAttentionOptions.BATCH_MAX_DELAY.key()
              + ": expected "
              + PagedAttentionOptions.BATCH_MAX_TOKENS.key()
              + " to be set too, because without it no batch waits");
    }
    return new OperatorSettings(
        PagedAttentionOptions.attentionConfig(options),
        options.get(PagedAttentionOptions.DEVICE_RESOURCE),
        options.get(PagedAttentionOptions.ON_BAD_ROW),
        options.get(PagedAttentionOptions.STATE),
        shards,
        maxTokens,
        maxDelay);
  }

  /** Whether a row that is refused with {@code code} goes to the side output. */
  boolean isSideOutput(ErrorCode code) {
    return onBadRow.leavesOut(code, attention.outOfBlocks());
  }
}
