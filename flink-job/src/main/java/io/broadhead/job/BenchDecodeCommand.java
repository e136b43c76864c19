// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.job.bench.Mode;
import io.broadhead.job.bench.Rows;
import java.util.List;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** {@code broadhead bench decode}. */
@Command(
    name = "decode",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description =
        "Decode: one new token of each sequence against its context, compared with"
            + " reading the same blocks.",
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead bench decode --model llama-3-8b,gpt-2 --batch 8 --context 4096",
      "  broadhead bench decode --dtype fp8 --threads 1,2 --csv decode.csv",
      "  broadhead bench decode --model 32/1/128,32/4/128,32/32/128 --batch 1,2,4,8",
    })
final class BenchDecodeCommand extends BenchModeCommand {
  @Option(
      names = "--batch",
      paramLabel = "N",
      split = ",",
      defaultValue = "1,8,32",
      description = "Sequences per step. Default: ${DEFAULT-VALUE}.")
  List<Integer> batches;

  @Option(
      names = "--context",
      paramLabel = "TOKENS",
      split = ",",
      defaultValue = "512,4096,32768",
      description = "Tokens of each sequence in the cache. Default: ${DEFAULT-VALUE}.")
  List<Integer> contexts;

  @Override
  Mode mode() {
    return Mode.DECODE;
  }

  @Override
  List<List<Rows>> steps() {
    requireAll("--batch", 1, batches);
    requireAll("--context", 1, contexts);
    return Rows.decodes(batches, contexts);
  }
}
