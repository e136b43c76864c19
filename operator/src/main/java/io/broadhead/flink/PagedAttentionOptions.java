// SPDX-License-Identifier: Apache-2.0
package io.broadhead.flink;

import io.broadhead.attention.AttentionConfig;
import io.broadhead.attention.OutOfBlocks;
import io.broadhead.kernel.EngineConfig;
import java.time.Duration;
import java.util.Set;
import java.util.TreeSet;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.ConfigOptions;
import org.apache.flink.configuration.ReadableConfig;

/** Every {@code broadhead.*} key. The job file describes layers; these say how they are run. */
public final class PagedAttentionOptions {
  private static final String PREFIX = "broadhead.";

  /** Filled by {@link #option}, and so before the options. */
  private static final Set<String> KEYS = new TreeSet<>();

  public static final ConfigOption<String> BACKEND =
      option("broadhead.backend")
          .stringType()
          .defaultValue("auto")
          .withDescription(
              "Backend that runs the kernels: auto (the best that works on the machine), or a name"
                  + " that the doctor command lists.");

  public static final ConfigOption<Integer> THREADS =
      option("broadhead.threads")
          .intType()
          .defaultValue(0)
          .withDescription(
              "CPU threads of one step of one subtask, the task's own included. 0 means one per"
                  + " core; with several slots in a TaskManager, cores divided by slots is better.");

  public static final ConfigOption<Integer> DEVICE =
      option("broadhead.device")
          .intType()
          .defaultValue(0)
          .withDescription(
              "Index of the device of a GPU backend; -1: the one with the most free memory. The CPU"
                  + " backend ignores it.");

  public static final ConfigOption<String> DEVICE_RESOURCE =
      option("broadhead.device-resource")
          .stringType()
          .noDefaultValue()
          .withDescription(
              "Name of an external resource of Flink's, such as gpu, whose property index is the"
                  + " device, in place of broadhead.device. Where a TaskManager has several, the"
                  + " operators of a job share them evenly.");

  public static final ConfigOption<OnBadRow> ON_BAD_ROW =
      option("broadhead.on-bad-row")
          .enumType(OnBadRow.class)
          .defaultValue(OnBadRow.FAIL)
          .withDescription(
              "What happens to a row with a value out of range, such as a slot beyond the pool. fail:"
                  + " the job fails. side-output: the row goes to the side output, and its batch"
                  + " goes on without it.");

  public static final ConfigOption<OutOfBlocks> OUT_OF_BLOCKS =
      option("broadhead.out-of-blocks")
          .enumType(OutOfBlocks.class)
          .defaultValue(OutOfBlocks.SWAP)
          .withDescription(
              "What happens to a row of managed block tables for which the pool has no blocks. swap:"
                  + " sequences that were not used for the longest time make room and come back on"
                  + " demand. reject: the row goes to the side output, and its sequence is given up"
                  + " until it comes again from its first token. fail: the job fails. A row that is"
                  + " too long for the whole pool is rejected in either of the first two cases.");

  public static final ConfigOption<StateMode> STATE =
      option("broadhead.state")
          .enumType(StateMode.class)
          .defaultValue(StateMode.FULL)
          .withDescription(
              "What checkpoints and savepoints hold of the KV caches. full: keys and values, so that"
                  + " a job that is restored goes on where it was; each token is written once, at the"
                  + " first checkpoint after its step, or when its sequence makes room for others;"
                  + " needs execution.checkpointing.dir, because Flink keeps no more than 5 MiB of a"
                  + " subtask in the JobManager's memory."
                  + " metadata: which sequences there are; after a restart, rows of these are"
                  + " refused with SEQUENCE_LOST until the producer sends them again from the first"
                  + " token. Needs managed block tables. none: nothing; a job that is restored"
                  + " begins with empty caches.");

  public static final ConfigOption<Integer> BATCH_MAX_TOKENS =
      option("broadhead.batch.max-tokens")
          .intType()
          .defaultValue(0)
          .withDescription(
              "New tokens of a step. Batches of one layer that are smaller are joined, without"
                  + " copying them; prompts that are longer are computed in pieces, so that others"
                  + " need not wait for them. 0: each batch is a step by itself.");

  public static final ConfigOption<Duration> BATCH_MAX_DELAY =
      option("broadhead.batch.max-delay")
          .durationType()
          .defaultValue(Duration.ZERO)
          .withDescription(
              "How long a batch waits for others to join it, if there are fewer tokens than a step"
                  + " may have: milliseconds. 0: not at all.");

  public static final ConfigOption<Integer> SHARDS =
      option("broadhead.shards")
          .intType()
          .noDefaultValue()
          .withDescription(
              "Shards that sequences are divided into by a hash of sequence_group if there is that"
                  + " column, else of sequence_id; the parallelism of the operator if not set."
                  + " More shards let the job be rescaled up to as many subtasks; with unaligned"
                  + " checkpoints they also make smaller batches. Sequences share blocks within a"
                  + " shard only.");

  private PagedAttentionOptions() {}

  private static ConfigOptions.OptionBuilder option(String key) {
    KEYS.add(key);
    return ConfigOptions.key(key);
  }

  /**
   * @throws IllegalArgumentException naming a {@code broadhead.*} key that is none of these
   */
  static void requireKnownKeys(ReadableConfig config) {
    for (String key : config.toMap().keySet()) {
      if (key.startsWith(PREFIX) && !KEYS.contains(key)) {
        throw new IllegalArgumentException(key + ": expected one of " + KEYS);
      }
    }
  }

  /** Reads and checks what {@link io.broadhead.attention.PagedAttention#open} needs. */
  static AttentionConfig attentionConfig(ReadableConfig config) {
    String backend = config.get(BACKEND);
    if (!EngineConfig.BACKENDS.contains(backend)) {
      throw new IllegalArgumentException(
          BACKEND.key() + ": expected one of " + EngineConfig.BACKENDS + ", got " + backend);
    }
    return new AttentionConfig(
        backend,
        atLeast(THREADS, config, 0),
        atLeast(DEVICE, config, -1),
        config.get(OUT_OF_BLOCKS));
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
