// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

/** Log levels of the command line's own log4j2 configuration, which reads these properties. */
final class Logging {
  private static final String OWN = "broadhead.log";
  private static final String LIBRARIES = "broadhead.log.libraries";

  private Logging() {}

  /** Everything from INFO up; takes effect before the first logger is used. */
  static void verbose() {
    System.setProperty(OWN, "INFO");
    System.setProperty(LIBRARIES, "INFO");
  }
}
