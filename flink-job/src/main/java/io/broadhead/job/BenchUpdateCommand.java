// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.job.bench.Mode;
import io.broadhead.job.bench.Rows;
import java.util.List;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** {@code broadhead bench update}. */
@Command(
    name = "update",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description =
        "Cache update: writing new keys and values to the cache, compared with copying as"
            + " many bytes.",
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead bench update --model llama-3-8b --rope",
      "  broadhead bench update --dtype float16,fp8 --batch 16 --tokens 512",
    })
final class BenchUpdateCommand extends BenchModeCommand {
  @Option(
      names = "--batch",
      paramLabel = "N",
      split = ",",
      defaultValue = "16",
      description = "Sequences per step. Default: ${DEFAULT-VALUE}.")
  List<Integer> batches;

  @Option(
      names = "--tokens",
      paramLabel = "N",
      defaultValue = "512",
      description = "New tokens of each sequence. Default: ${DEFAULT-VALUE}.")
  int tokens;

  @Option(names = "--rope", description = "Also rotate the keys (RoPE).")
  boolean rope;

  @Override
  Mode mode() {
    return Mode.UPDATE;
  }

  @Override
  boolean rope() {
    return rope;
  }

  @Override
  List<List<Rows>> steps() {
    requireAll("--batch", 1, batches);
    requireAll("--tokens", 1, List.of(tokens));
    return batches.stream().map(batch -> List.of(new Rows(batch, tokens, tokens))).toList();
  }
}
