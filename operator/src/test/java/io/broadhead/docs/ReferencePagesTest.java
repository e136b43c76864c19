// SPDX-License-Identifier: Apache-2.0
package io.broadhead.docs;

import static org.assertj.core.api.Assertions.assertThat;

import io.broadhead.flink.PagedAttentionMetrics;
import java.lang.reflect.Field;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Map;
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
}
