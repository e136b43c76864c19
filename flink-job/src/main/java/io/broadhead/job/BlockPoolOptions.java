// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.attention.OutOfBlocks;
import picocli.CommandLine.Option;

/** What the commands that compute steps ask about managed block tables. */
final class BlockPoolOptions {
  @Option(
      names = "--out-of-blocks",
      paramLabel = "POLICY",
      defaultValue = "swap",
      description =
          "What to do when block tables are managed and the pool is full. swap: swap out"
              + " the least recently used sequences; reject: leave the row out and write it to"
              + " --refused; fail: end the work. Default: ${DEFAULT-VALUE}.")
  OutOfBlocks outOfBlocks;
}
