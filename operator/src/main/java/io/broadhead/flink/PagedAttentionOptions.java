// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.attention.AttentionConfig;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.ConfigOptions;
import org.apache.flink.configuration.ReadableConfig;

/** Every {@code broadhead.*} key. The job file describes layers; these say how they are run. */
public final class PagedAttentionOptions {
  public static final ConfigOption<String> BACKEND =
      ConfigOptions.key("broadhead.backend")
          .stringType()
          .defaultValue("auto")
          .withDescription(
              "Backend that runs the kernels: auto (the best that works on the machine), or a name"
                  + " that the doctor command lists.");

  public static final ConfigOption<Integer> THREADS =
      ConfigOptions.key("broadhead.threads")
          .intType()
          .defaultValue(0)
          .withDescription(
              "CPU threads of one step of one subtask, the task's own included. 0 means one per"
                  + " core; with several slots in a TaskManager, cores divided by slots is better.");

  public static final ConfigOption<Integer> DEVICE =
      ConfigOptions.key("broadhead.device")
          .intType()
          .defaultValue(0)
          .withDescription("Index of the device of a GPU backend. The CPU backend ignores it.");

  public static final ConfigOption<OnBadRow> ON_BAD_ROW =
      ConfigOptions.key("broadhead.on-bad-row")
          .enumType(OnBadRow.class)
          .defaultValue(OnBadRow.FAIL)
          .withDescription(
              "What happens to a row with a value out of range, such as a slot beyond the pool.");

  public static final ConfigOption<Integer> SHARDS =
      ConfigOptions.key("broadhead.shards")
          .intType()
          .noDefaultValue()
          .withDescription(
              "Shards that sequences are divided into by a hash of sequence_id; the parallelism of"
                  + " the operator if not set. More shards make smaller batches and let the job be"
                  + " rescaled up to as many subtasks. With 1 the rows of a batch stay together.");

  private PagedAttentionOptions() {}

  /** Reads and checks what {@link io.broadhead.attention.PagedAttention#open} needs. */
  static AttentionConfig attentionConfig(ReadableConfig config) {
    return new AttentionConfig(
        config.get(BACKEND), atLeast(THREADS, config, 0), atLeast(DEVICE, config, 0));
  }

  static int atLeast(ConfigOption<Integer> option, ReadableConfig config, int least) {
    int value = config.get(option);
    if (value < least) {
      throw new IllegalArgumentException(
          option.key() + ": expected " + least + " or more, got " + value);
    }
    return value;
  }
}
