// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.nio.file.Path;
import java.util.Arrays;

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
    return command("attend", job, input, output, more);
  }

  static Cli run(Path job, Path input, Path output, Object... more) {
    return command("run", job, input, output, more);
  }

  private static Cli command(String name, Path job, Path input, Path output, Object... more) {
    Object[] args =
        new Object[] {name, "--quiet", "--job", job, "--input", input, "--output", output};
    Object[] all = Arrays.copyOf(args, args.length + more.length);
    System.arraycopy(more, 0, all, args.length, more.length);
    return run(all);
  }
}
