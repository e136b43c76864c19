// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import io.broadhead.kernel.EngineConfig;
import java.io.PrintWriter;
import java.util.concurrent.Callable;
import picocli.CommandLine;
import picocli.CommandLine.Model.CommandSpec;
import picocli.CommandLine.Option;
import picocli.CommandLine.ParameterException;
import picocli.CommandLine.Spec;
import picocli.CommandLine.UnmatchedArgumentException;

/** What all commands share: how a failure is told. */
abstract class ReportingCommand implements Callable<Integer> {
  @Spec CommandSpec spec;

  @Option(
      names = {"-v", "--verbose"},
      description = "Print the libraries' log messages, and the stack trace of a failure.")
  boolean verbose;

  /** Does the work; a returned exit code other than 0 has been explained to the user. */
  abstract int execute() throws Exception;

  @Override
  public final Integer call() {
    try {
      return execute();
    } catch (ParameterException e) {
      throw e;
    } catch (Exception | OutOfMemoryError | LinkageError e) {
      err().println(spec.qualifiedName() + ": " + Failure.describe(e));
      if (verbose) {
        e.printStackTrace(err());
      } else if (Failure.isUnexpected(e)) {
        err().println("(--verbose prints the stack trace)");
      }
      return Main.FAILED;
    }
  }

  final PrintWriter out() {
    return spec.commandLine().getOut();
  }

  final PrintWriter err() {
    return spec.commandLine().getErr();
  }

  final void requireOption(boolean holds, String option, String expected, Object got) {
    if (!holds) {
      throw usage(option + ": expected " + expected + ", got " + got);
    }
  }

  final void requireKnownBackend(String backend) {
    requireOption(
        EngineConfig.BACKENDS.contains(backend),
        "--backend",
        "one of " + String.join(", ", EngineConfig.BACKENDS),
        backend);
  }

  final ParameterException usage(String message) {
    return new ParameterException(spec.commandLine(), message);
  }

  /** Prints a usage error in one line, with the way to more. */
  static int onUsageError(ParameterException e, String[] args) {
    CommandLine line = e.getCommandLine();
    String suggestion =
        e instanceof UnmatchedArgumentException unmatched
            ? unmatched.getSuggestions().stream()
                .findFirst()
                .map(meant -> "; did you mean '" + meant + "'?")
                .orElse("")
            : "";
    line.getErr()
        .println(line.getCommandSpec().qualifiedName() + ": " + e.getMessage() + suggestion);
    line.getErr().println("Try '" + line.getCommandSpec().qualifiedName() + " --help'.");
    return CommandLine.ExitCode.USAGE;
  }
}
