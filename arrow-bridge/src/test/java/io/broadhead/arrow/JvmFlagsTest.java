// SPDX-License-Identifier: Apache-2.0
package io.broadhead.arrow;

import static org.assertj.core.api.Assertions.assertThat;

import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import java.util.concurrent.TimeUnit;
import org.junit.jupiter.api.Test;

class JvmFlagsTest {
  /** Opens an allocator in a JVM of its own. */
  public static final class Opener {
    private Opener() {}

    public static void main(String[] args) {
      try {
        Allocators.root().close();
        System.out.println("opened");
      } catch (IllegalStateException e) {
        System.out.println(e.getMessage());
      }
    }
  }

  @Test
  void missingFlagIsNamedInOneSentence() throws IOException, InterruptedException {
    assertThat(run())
        .contains("start this JVM with --add-opens=java.base/java.nio=ALL-UNNAMED")
        .doesNotContain("opened");
    assertThat(run(JvmFlags.ADD_OPENS)).contains("opened");
  }

  private static String run(String... flags) throws IOException, InterruptedException {
    var command = new java.util.ArrayList<String>();
    command.add(Path.of(System.getProperty("java.home"), "bin", "java").toString());
    command.addAll(java.util.List.of(flags));
    command.add("-Xmx64m");
    command.add("-cp");
    command.add(System.getProperty("java.class.path"));
    command.add(Opener.class.getName());
    Process process = new ProcessBuilder(command).redirectErrorStream(true).start();
    String output = new String(process.getInputStream().readAllBytes(), StandardCharsets.UTF_8);
    assertThat(process.waitFor(1, TimeUnit.MINUTES)).isTrue();
    return output;
  }
}
