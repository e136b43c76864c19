// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import static org.assertj.core.api.Assertions.assertThat;

import java.nio.charset.StandardCharsets;
import java.nio.file.Path;
import org.apache.flink.util.FatalExitExceptionHandler;
import org.junit.jupiter.api.Test;

/** What libraries may say in the command line's own process. */
class LoggingTest {
  /** A process in which a thread of Flink's fails. */
  static final class Failing {
    public static void main(String[] args) {
      FatalExitExceptionHandler.INSTANCE.uncaughtException(
          Thread.currentThread(), new StackOverflowError("on purpose"));
    }
  }

  @Test
  void whyFlinkEndsTheProcessIsTold() throws Exception {
    Process process =
        new ProcessBuilder(
                Path.of(System.getProperty("java.home"), "bin", "java").toString(),
                "-Dlog4j2.configurationFile=io/broadhead/job/log4j2.properties",
                "-cp",
                System.getProperty(
                    "surefire.test.class.path", System.getProperty("java.class.path")),
                Failing.class.getName())
            .start();
    String told = new String(process.getErrorStream().readAllBytes(), StandardCharsets.UTF_8);

    assertThat(process.waitFor()).isNotZero();
    assertThat(told)
        .contains("FATAL: Thread 'main' produced an uncaught exception. Stopping the process...")
        .contains("java.lang.StackOverflowError: on purpose")
        .doesNotContain("Thread dump");
  }
}
