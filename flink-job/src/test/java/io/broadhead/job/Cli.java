// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.stream.Stream;

/**
 * One command, run in this JVM.
 *
 * @param code exit code
 */
record Cli(int code, String out, String err) {
  static Cli run(Object... args) {
    StringWriter out = new StringWriter();
    StringWriter err = new StringWriter();
    int code =
        Main.execute(
            new PrintWriter(out, true),
            new PrintWriter(err, true),
            Arrays.stream(args).map(Object::toString).toArray(String[]::new));
    return new Cli(code, out.toString(), err.toString());
  }

  static Cli attend(Path job, Path input, Path output, Object... more) {
    return quiet("attend", job, input, output, more);
  }

  static Cli run(Path job, Path input, Path output, Object... more) {
    return quiet("run", job, input, output, more);
  }

  private static Cli quiet(String name, Path job, Path input, Path output, Object... more) {
    return command(name, job, input, output, with("--quiet", more));
  }

  /** A command that says what it does. */
  static Cli command(String name, Path job, Path input, Path output, Object... more) {
    return run(with(name, with("--job", job, "--input", input, "--output", output), more));
  }

  /** One list of all of {@code arguments}, which are arrays or single ones. */
  private static Object[] with(Object... arguments) {
    return Arrays.stream(arguments)
        .flatMap(
            each -> each instanceof Object[] several ? Arrays.stream(several) : Stream.of(each))
        .toArray();
  }
}
