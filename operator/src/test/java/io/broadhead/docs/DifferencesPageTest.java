// SPDX-License-Identifier: Apache-2.0
package io.broadhead.docs;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.regex.MatchResult;
import java.util.regex.Pattern;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** The tests that the page of differences names exist. */
class DifferencesPageTest {
  private static final Path ROOT = Path.of("..");
  private static final Path PAGE = ROOT.resolve("docs/reference/differences-from-vllm-rocm.md");
  private static final Pattern NAME = Pattern.compile("`(\\w+)([./])(\\w+)`");

  @Test
  void everyNamedTestExists() throws IOException {
    String nativeTests = text(ROOT.resolve("native/test"), ".cc");
    List<MatchResult> names = NAME.matcher(Files.readString(PAGE)).results().toList();
    assertThat(names).hasSizeGreaterThan(50);
    for (MatchResult name : names) {
      String first = name.group(1);
      String second = name.group(3);
      if (name.group(2).equals("/")) {
        assertThat(nativeTests)
            .as(name.group())
            .containsPattern("\\.feature = \"" + first + "\",\\s*\\.name = \"" + second + "\"");
      } else if (first.endsWith("Test")) {
        assertThat(javaTest(first)).as(name.group()).contains("void " + second + "(");
      } else if (!first.equals("PagedAttention") && !first.equals("kv_cache")) {
        assertThat(nativeTests)
            .as(name.group())
            .containsPattern("TEST(_P|_F)?\\(" + first + ", " + second + "\\)");
      }
    }
  }

  @Test
  void everyLineNamesATest() throws IOException {
    assertThat(Files.readAllLines(PAGE))
        .filteredOn(line -> line.startsWith("| ") && !line.contains("| test |"))
        .isNotEmpty()
        .allSatisfy(
            line -> {
              String[] cells = line.split("\\|");
              assertThat(cells[cells.length - 1]).containsPattern(NAME);
            });
  }

  private static String javaTest(String name) throws IOException {
    for (String module : List.of("native", "arrow-bridge", "operator", "flink-job")) {
      Path tests = ROOT.resolve(module).resolve("src/test/java");
      String found = text(tests, "/" + name + ".java");
      if (!found.isEmpty()) {
        return found;
      }
    }
    return "";
  }

  /** All files below {@code folder} whose paths end like that, one after the other. */
  private static String text(Path folder, String suffix) throws IOException {
    StringBuilder text = new StringBuilder();
    try (Stream<Path> files = Files.walk(folder)) {
      for (Path file : files.filter(file -> file.toString().endsWith(suffix)).sorted().toList()) {
        text.append(Files.readString(file));
      }
    }
    return text.toString();
  }
}
