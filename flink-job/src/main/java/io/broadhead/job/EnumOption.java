// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job;

import java.util.Arrays;
import java.util.stream.Collectors;
import picocli.CommandLine;
import picocli.CommandLine.Model.OptionSpec;
import picocli.CommandLine.TypeConversionException;

/** Options that are enums are spelled as these print themselves, in upper or lower case. */
final class EnumOption {
  private EnumOption() {}

  /** Has {@code line} and the commands below it read their enums so. */
  static void readAll(CommandLine line) {
    for (OptionSpec option : line.getCommandSpec().options()) {
      for (Class<?> type : option.auxiliaryTypes()) {
        if (type.isEnum()) {
          register(line, type);
        }
      }
    }
    line.getSubcommands().values().forEach(EnumOption::readAll);
  }

  private static <T> void register(CommandLine line, Class<T> type) {
    line.registerConverter(type, text -> value(type, text));
  }

  private static <T> T value(Class<T> type, String text) {
    T[] values = type.getEnumConstants();
    return Arrays.stream(values)
        .filter(value -> value.toString().equalsIgnoreCase(text))
        .findFirst()
        .orElseThrow(
            () ->
                new TypeConversionException(
                    "expected one of "
                        + Arrays.stream(values).map(T::toString).collect(Collectors.joining(", "))
                        + ", got '"
                        + text
                        + "'"));
  }
}
