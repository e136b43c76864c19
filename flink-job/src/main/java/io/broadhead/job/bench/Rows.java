// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import java.util.Arrays;
import java.util.List;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;

/**
 * Rows of a step that are alike.
 *
 * @param count sequences
 * @param tokens new tokens of each
 * @param context tokens of each in the cache, the new ones included
 */
public record Rows(int count, int tokens, int context) {
  private static final Pattern TEXT = Pattern.compile("(\\d{1,9})x(\\d{1,9})@(\\d{1,9})");

  public Rows {
    if (count < 1 || tokens < 1 || context < tokens) {
      throw new IllegalArgumentException(
          "expected at least one sequence with at least one token and as much context, got "
              + text(count, tokens, context));
    }
  }

  /** Decode steps: each number of sequences with each context. */
  public static List<List<Rows>> decodes(List<Integer> batches, List<Integer> contexts) {
    return contexts.stream()
        .flatMap(context -> batches.stream().map(batch -> List.of(new Rows(batch, 1, context))))
        .toList();
  }

  /** {@code 8x1@4096+1x512@512}: decode of 8 sequences beside a prompt of 512 tokens. */
  static String text(List<Rows> rows) {
    return rows.stream().map(Rows::toString).collect(Collectors.joining("+"));
  }

  /** What {@link #text(List)} wrote. */
  static List<Rows> parse(String text) {
    return Arrays.stream(text.split("\\+")).map(Rows::parseOne).toList();
  }

  private static Rows parseOne(String text) {
    Matcher matcher = TEXT.matcher(text);
    if (!matcher.matches()) {
      throw new IllegalArgumentException("expected rows as COUNTxTOKENS@CONTEXT, got " + text);
    }
    return new Rows(
        Integer.parseInt(matcher.group(1)),
        Integer.parseInt(matcher.group(2)),
        Integer.parseInt(matcher.group(3)));
  }

  private static String text(int count, int tokens, int context) {
    return count + "x" + tokens + "@" + context;
  }

  @Override
  public String toString() {
    return text(count, tokens, context);
  }
}
