// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.io.PrintWriter;
import java.io.StringWriter;
import java.util.Collections;
import java.util.List;
import picocli.CommandLine;
import picocli.CommandLine.Command;
import picocli.CommandLine.IVersionProvider;

/**
 * The command line: {@code attend}, {@code run}, {@code merge}, {@code inspect}, {@code compare},
 * {@code bench} and {@code doctor}. Exit codes: 0 everything was done, 1 the work failed, 2 the
 * command line is wrong.
 *
 * <p>It is also the main class of the cluster's job jar. Inside a Flink client or job manager it
 * never ends the JVM: it returns, or throws what went wrong.
 */
@Command(
    name = "broadhead",
    description = "Paged attention over Arrow step batches.",
    synopsisSubcommandLabel = "COMMAND",
    mixinStandardHelpOptions = true,
    versionProvider = Main.Version.class,
    subcommands = {
      AttendCommand.class,
      RunCommand.class,
      MergeCommand.class,
      InspectCommand.class,
      CompareCommand.class,
      BenchCommand.class,
      DoctorCommand.class,
    },
    exitCodeListHeading = "%nExit codes:%n",
    exitCodeList = {
      "0:everything was done",
      "1:the work failed; one line on stderr says where and why",
      "2:the command line is wrong",
    },
    footer = {
      "%nIn examples, broadhead stands for: java -jar broadhead.jar",
      "To try it in a built clone of the project:",
      "  java -jar flink-job/target/broadhead.jar attend --output out.arrow \\",
      "      --job samples/data/llama/job.yaml --input samples/data/llama/steps.arrow",
      "  java -jar flink-job/target/broadhead.jar compare \\",
      "      samples/data/llama/expected.arrow out.arrow",
    })
public final class Main {
  /** Exit code of work that failed. */
  static final int FAILED = 1;

  private static final String LOG_CONFIGURATION = "log4j2.configurationFile";

  private Main() {}

  /** Runs one command; see {@code --help}. */
  public static void main(String[] args) throws Exception {
    if (ownsJvm()) {
      // Before the first logger and the first JavaCPP class.
      if (System.getProperty(LOG_CONFIGURATION) == null) {
        System.setProperty(LOG_CONFIGURATION, "io/broadhead/job/log4j2.properties");
      }
      if (!Collections.disjoint(List.of(args), List.of("-v", "--verbose"))) {
        Logging.verbose();
      }
      System.exit(execute(args));
    }
    StringWriter told = new StringWriter();
    if (execute(new PrintWriter(System.out, true), new PrintWriter(told), args) != 0) {
      throw new IllegalStateException(told.toString().strip());
    }
    System.err.print(told);
  }

  /** Runs one command without ending the JVM and answers its exit code. */
  static int execute(String... args) {
    return execute(new PrintWriter(System.out, true), new PrintWriter(System.err, true), args);
  }

  /** Like {@link #execute(String...)}, printing to {@code out} and {@code err}. */
  static int execute(PrintWriter out, PrintWriter err, String... args) {
    CommandLine line = new CommandLine(new Main()).setOut(out).setErr(err);
    EnumOption.readAll(line);
    line.setUsageHelpAutoWidth(true);
    line.setParameterExceptionHandler(ReportingCommand::onUsageError);
    if (args.length == 0) {
      line.usage(err);
      return CommandLine.ExitCode.USAGE;
    }
    return line.execute(args);
  }

  /** Whether the JVM was started for this class, rather than for Flink. */
  private static boolean ownsJvm() {
    return StackWalker.getInstance()
        .walk(frames -> frames.reduce((first, second) -> second))
        .map(frame -> frame.getClassName().equals(Main.class.getName()))
        .orElse(false);
  }

  /** {@code --version}. */
  static final class Version implements IVersionProvider {
    @Override
    public String[] getVersion() {
      return new String[] {"broadhead " + Versions.load().get("broadhead")};
    }
  }
}
