// SPDX-License-Identifier: Apache-2.0
package io.broadhead.docs;

import io.broadhead.attention.job.JobFileKey;
import io.broadhead.flink.PagedAttentionMetrics;
import io.broadhead.flink.PagedAttentionOptions;
import java.lang.reflect.Field;
import java.lang.reflect.ParameterizedType;
import java.util.Arrays;
import java.util.Map;
import java.util.TreeMap;
import java.util.stream.Collectors;
import org.apache.flink.configuration.ConfigOption;
import org.apache.flink.configuration.description.HtmlFormatter;

/** Writes the reference pages from the classes that declare what they list. */
final class ReferencePages {
  private static final String HEADER =
      "<!-- Generated from %s; regenerate with"
          + " `mvn -pl operator -am test -Dbroadhead.docs.update=true`. -->\n\n";

  private ReferencePages() {}

  /** Text of every page, by file name. */
  static Map<String, String> all() throws IllegalAccessException {
    Map<String, String> pages = new TreeMap<>();
    pages.put("configuration.md", configuration());
    pages.put("job-file.md", jobFile());
    pages.put("metrics.md", metrics());
    pages.put("support-matrix.md", supportMatrix());
    return pages;
  }

  private static String configuration() throws IllegalAccessException {
    StringBuilder page = new StringBuilder(HEADER.formatted("PagedAttentionOptions"));
    page.append(
        """
        # Configuration

        Flink options of the operator. Set them in the job's configuration; `broadhead run` has a
        command-line option for each. The [job file](job-file.md) says what the layers compute.

        | key | type | default | meaning |
        |---|---|---|---|
        """);
    for (Field field : PagedAttentionOptions.class.getFields()) {
      ConfigOption<?> option = (ConfigOption<?>) field.get(null);
      Class<?> type =
          (Class<?>) ((ParameterizedType) field.getGenericType()).getActualTypeArguments()[0];
      Object byDefault = option.hasDefaultValue() ? code(option.defaultValue()) : "none";
      page.append(
          row(
              code(option.key()),
              typeName(type),
              byDefault,
              new HtmlFormatter().format(option.description())));
    }
    return page.toString();
  }

  private static String typeName(Class<?> type) {
    if (type.isEnum()) {
      return Arrays.stream(type.getEnumConstants())
          .map(ReferencePages::code)
          .collect(Collectors.joining(" or "));
    }
    return type == Integer.class ? "integer" : type.getSimpleName().toLowerCase();
  }

  private static String metrics() {
    StringBuilder page = new StringBuilder(HEADER.formatted("PagedAttentionMetrics"));
    page.append(
        """
        # Metrics

        Every subtask of the operator reports these metrics in the scope `<operator scope>.%s`, in
        addition to Flink's own.

        | name | type | meaning |
        |---|---|---|
        """
            .formatted(PagedAttentionMetrics.GROUP));
    for (PagedAttentionMetrics.Description metric : PagedAttentionMetrics.ALL) {
      page.append(row(code(metric.name()), metric.type(), metric.text()));
    }
    return page.toString();
  }

  private static String jobFile() {
    StringBuilder page = new StringBuilder(HEADER.formatted("JobFileKey"));
    page.append(
        """
        # Job file

        The job file describes the attention layers of a job and their KV cache, in YAML 1.2.

        ```yaml
        kv_cache: {block_size: 16, num_blocks: 4096}
        layers:
          - {name: model.layers.0.self_attn, num_heads: 32, num_kv_heads: 8, head_size: 128}
          - {name: model.layers.1.self_attn, num_heads: 32, num_kv_heads: 8, head_size: 128}
        ```

        An unknown key, a missing key or a value that is not accepted is an error. Its message names
        file, line, column, key, what is accepted and what was found. A key whose value is null counts
        as absent.
        """);
    for (JobFileKey.Section section : JobFileKey.Section.values()) {
      page.append("\n## ")
          .append(section.path().isEmpty() ? "Top level" : code(section.path()))
          .append("\n\n| key | accepted | default | meaning |\n|---|---|---|---|\n");
      for (JobFileKey key : section.keys()) {
        page.append(row(code(key.key()), key.accepted(), key.byDefault(), key.description()));
      }
    }
    return page.toString();
  }

  private static String supportMatrix() {
    return HEADER.formatted("the answers of `bh_layer_supported`")
        + """
        # Support matrix

        The answers of each backend to the question whether it can run a layer. A cell says yes if the
        answer is yes for every combination that it covers. `broadhead doctor` tells which backends can
        be used on a machine. A job with a layer that its backend refuses fails at start, with the
        reason. The [conformance suite](../../native/test) runs these combinations.
        """
        + SupportMatrix.page();
  }

  private static String code(Object value) {
    return "`" + value + "`";
  }

  static String row(Object... cells) {
    return Arrays.stream(cells)
        .map(cell -> cell.toString().replace("|", "\\|"))
        .collect(Collectors.joining(" | ", "| ", " |\n"));
  }
}
