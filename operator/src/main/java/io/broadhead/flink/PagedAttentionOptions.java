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
              "Backend that runs the kernels: auto (the best that works on the machine), or"
                  + " a name that broadhead doctor lists.");

  public static final ConfigOption<Integer> THREADS =
      option("broadhead.threads")
          .intType()
          .defaultValue(0)
          .withDescription(
              "CPU threads for a step of one subtask, including the task's own. 0: one per"
                  + " core. With several slots in a TaskManager, cores divided by slots is"
                  + " better.");

  public static final ConfigOption<Integer> DEVICE =
      option("broadhead.device")
          .intType()
          .defaultValue(0)
          .withDescription(
              "Device index of a GPU backend. -1: the device with the most free memory. The"
                  + " CPU backend ignores it.");

  public static final ConfigOption<String> DEVICE_RESOURCE =
      option("broadhead.device-resource")
          .stringType()
          .noDefaultValue()
          .withDescription(
              "Name of a Flink external resource, such as gpu. Its property index names the"
                  + " device, in place of broadhead.device. If a TaskManager has several devices,"
                  + " the operators of a job share them evenly.");

  public static final ConfigOption<OnBadRow> ON_BAD_ROW =
      option("broadhead.on-bad-row")
          .enumType(OnBadRow.class)
          .defaultValue(OnBadRow.FAIL)
          .withDescription(
              "What happens to a row with a value out of range, such as a slot beyond the"
                  + " pool. fail: the job fails. side-output: the row goes to the side output,"
                  + " and the rest of its batch is computed.");

  public static final ConfigOption<OutOfBlocks> OUT_OF_BLOCKS =
      option("broadhead.out-of-blocks")
          .enumType(OutOfBlocks.class)
          .defaultValue(OutOfBlocks.SWAP)
          .withDescription(
              "What happens to a row of managed block tables for which the pool has no"
                  + " blocks. swap: the least recently used sequences make room and return on"
                  + " demand; a row that is too long for the whole pool is refused, as"
                  + " broadhead.on-bad-row says, and its sequence is given up. reject: the row"
                  + " goes to the side output, and its sequence is given up. fail: the job fails."
                  + " The rows of a sequence that was given up are refused until it is sent again"
                  + " from its first token.");

  public static final ConfigOption<StateMode> STATE =
      option("broadhead.state")
          .enumType(StateMode.class)
          .defaultValue(StateMode.FULL)
          .withDescription(
              "What checkpoints and savepoints hold of the KV caches. full: keys and"
                  + " values, so that a restored job resumes where it was. Each token is written"
                  + " once: at the first checkpoint after its step, or when its sequence makes"
                  + " room for others. Needs execution.checkpointing.dir, because Flink keeps no"
                  + " more than 5 MiB of a subtask in the JobManager's memory. metadata: which"
                  + " sequences exist; after a restart their rows are refused with SEQUENCE_LOST"
                  + " until the producer sends them again from the first token. Needs managed"
                  + " block tables. none: nothing; a restored job begins with empty caches.");

  public static final ConfigOption<Integer> BATCH_MAX_TOKENS =
      option("broadhead.batch.max-tokens")
          .intType()
          .defaultValue(0)
          .withDescription(
              "Limit of new tokens per step. Smaller batches of one layer are joined"
                  + " without copying them; longer prompts are computed in pieces, so that other"
                  + " sequences need not wait for them (with external block tables, those that"
                  + " touch none of the blocks that are still to be written or read). 0: each"
                  + " batch is one step.");

  public static final ConfigOption<Duration> BATCH_MAX_DELAY =
      option("broadhead.batch.max-delay")
          .durationType()
          .defaultValue(Duration.ZERO)
          .withDescription(
              "How long a batch waits, from its arrival, for others to join it while there are"
                  + " fewer new tokens than broadhead.batch.max-tokens; counted in milliseconds. 0:"
                  + " it does not wait.");

  public static final ConfigOption<Integer> SHARDS =
      option("broadhead.shards")
          .intType()
          .noDefaultValue()
          .withDescription(
              "Number of shards that sequences are divided into, by a hash of"
                  + " sequence_group if that column is present, else of sequence_id. If not set:"
                  + " the parallelism of the operator. A job can be rescaled up to as many"
                  + " subtasks as it has shards; with unaligned checkpoints more shards also make"
                  + " smaller batches. Sequences share blocks only within a shard.");

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
