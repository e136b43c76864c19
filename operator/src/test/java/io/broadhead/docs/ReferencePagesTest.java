// SPDX-License-Identifier: Apache-2.0
package io.broadhead.docs;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.flink.PagedAttentionMetrics;
import java.lang.reflect.Field;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.regex.Pattern;
import org.junit.jupiter.api.Test;

class ReferencePagesTest {
  private static final Path FOLDER = Path.of("..", "docs", "reference");

  @Test
  void pagesAreUpToDate() throws Exception {
    for (Map.Entry<String, String> page : ReferencePages.all().entrySet()) {
      Path file = FOLDER.resolve(page.getKey());
      if (Boolean.getBoolean("broadhead.docs.update")) {
        Files.createDirectories(FOLDER);
        Files.writeString(file, page.getValue());
      }
      assertThat(file)
          .as("regenerate with -Dbroadhead.docs.update=true")
          .exists()
          .hasContent(page.getValue());
    }
  }

  @Test
  void everyMetricIsDescribed() throws Exception {
    for (Field field : PagedAttentionMetrics.class.getFields()) {
      if (field.getType() == String.class && !field.getName().endsWith("GROUP")) {
        String name = (String) field.get(null);
        assertThat(PagedAttentionMetrics.ALL)
            .as(name)
            .anyMatch(m -> m.name().equals(name) || m.name().endsWith("." + name));
      }
    }
  }

  @Test
  void theDashboardShowsEveryMetric() throws Exception {
    assertThat(metricsOn("grafana-dashboard.json"))
        .containsExactlyInAnyOrderElementsOf(metricNames());
  }

  @Test
  void alarmsAreOnMetricsThatExist() throws Exception {
    assertThat(metricsOn("troubleshooting.md")).isNotEmpty().isSubsetOf(metricNames());
  }

  private static List<String> metricNames() {
    return PagedAttentionMetrics.ALL.stream().map(m -> m.name().replaceAll(".*\\.", "")).toList();
  }

  /** The operator's metrics that a page of operations has by their names in Prometheus. */
  private static List<String> metricsOn(String page) throws Exception {
    return Pattern.compile("_operator_broadhead_(?:code_)?(\\w+)")
        .matcher(Files.readString(Path.of("../docs/operations", page)))
        .results()
        .map(match -> match.group(1))
        .distinct()
        .toList();
  }
}
