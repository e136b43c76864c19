// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.job.bench.Mode;
import io.broadhead.job.bench.Rows;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import picocli.CommandLine.Command;
import picocli.CommandLine.Option;

/** {@code broadhead bench prefill}. */
@Command(
    name = "prefill",
    mixinStandardHelpOptions = true,
    sortOptions = false,
    description =
        "Prefill: the tokens of one prompt or of a chunk of it, compared with as many"
            + " multiply-adds.",
    footerHeading = "%nExamples:%n",
    footer = {
      "  broadhead bench prefill --model llama-3-8b",
      "  broadhead bench prefill --tokens 2048,512+3584 --dtype float16,float32",
    })
final class BenchPrefillCommand extends BenchModeCommand {
  private static final Pattern TOKENS = Pattern.compile("([1-9]\\d{0,6})(?:\\+(\\d{1,7}))?");

  @Option(
      names = "--tokens",
      paramLabel = "NEW[+OLD]",
      split = ",",
      defaultValue = "512,2048,512+3584",
      description =
          "New tokens, and tokens already in the cache before them. Default:"
              + " ${DEFAULT-VALUE}.")
  List<String> tokens;

  @Override
  Mode mode() {
    return Mode.PREFILL;
  }

  @Override
  List<List<Rows>> steps() {
    return tokens.stream().map(text -> List.of(rows(text))).toList();
  }

  private Rows rows(String text) {
    Matcher matcher = TOKENS.matcher(text);
    requireOption(matcher.matches(), "--tokens", "NEW or NEW+OLD, as in 512+3584", text);
    int fresh = Integer.parseInt(matcher.group(1));
    int old = matcher.group(2) == null ? 0 : Integer.parseInt(matcher.group(2));
    return new Rows(1, fresh, fresh + old);
  }
}
