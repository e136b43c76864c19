// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import java.math.BigInteger;
import java.util.ArrayList;
import java.util.EnumMap;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.Optional;
import java.util.function.Supplier;
import java.util.stream.Collectors;
import org.snakeyaml.engine.v2.exceptions.Mark;
import org.snakeyaml.engine.v2.nodes.MappingNode;
import org.snakeyaml.engine.v2.nodes.Node;
import org.snakeyaml.engine.v2.nodes.NodeTuple;
import org.snakeyaml.engine.v2.nodes.ScalarNode;
import org.snakeyaml.engine.v2.nodes.SequenceNode;
import org.snakeyaml.engine.v2.nodes.Tag;

/**
 * One mapping of a job file: its keys are known, unique, and read with their type. A key whose
 * value is null counts as absent.
 */
final class YamlMapping {
  private final String path;
  private final Map<String, Mark> marks;
  private final Map<JobFileKey, Node> values = new EnumMap<>(JobFileKey.class);

  private YamlMapping(String path, Map<String, Mark> marks) {
    this.path = path;
    this.marks = marks;
  }

  /**
   * @param marks receives the place of every key, by path
   */
  static YamlMapping of(
      Node node, JobFileKey.Section section, String path, Map<String, Mark> marks) {
    node.getStartMark().ifPresent(m -> marks.putIfAbsent(path, m));
    if (!(node instanceof MappingNode mapping)) {
      throw InvalidJobException.expected(path, JobFile.known(section), describe(node));
    }
    YamlMapping result = new YamlMapping(path, marks);
    for (NodeTuple entry : mapping.getValue()) {
      result.add(section, entry.getKeyNode(), entry.getValueNode());
    }
    return result;
  }

  private void add(JobFileKey.Section section, Node keyNode, Node value) {
    String name = keyNode instanceof ScalarNode scalar ? scalar.getValue() : describe(keyNode);
    String keyPath = path.isEmpty() ? name : path + "." + name;
    boolean repeated = marks.containsKey(keyPath);
    keyNode.getStartMark().ifPresent(m -> marks.put(keyPath, m));
    JobFileKey key =
        section.keys().stream()
            .filter(k -> k.key().equals(name))
            .findFirst()
            .orElseThrow(() -> unknown(section, keyPath, name));
    if (repeated) {
      throw new InvalidJobException(keyPath, "given twice; expected once");
    }
    if (!value.getTag().equals(Tag.NULL)) {
      value.getStartMark().ifPresent(m -> marks.put(keyPath, m));
      values.put(key, value);
    }
  }

  private static InvalidJobException unknown(
      JobFileKey.Section section, String keyPath, String name) {
    String accepted =
        section.keys().stream().map(JobFileKey::key).collect(Collectors.joining(", "));
    JobFileKey nearest = null;
    int best = Integer.MAX_VALUE;
    for (JobFileKey key : section.keys()) {
      int distance = distance(plain(name), plain(key.key()));
      if (distance < best) {
        best = distance;
        nearest = key;
      }
    }
    String hint =
        nearest != null && best <= Math.max(2, name.length() / 3)
            ? "; did you mean '" + nearest.key() + "'?"
            : elsewhere(name);
    return new InvalidJobException(
        keyPath, "unknown key '" + name + "'; expected one of " + accepted + hint);
  }

  private static String elsewhere(String name) {
    for (JobFileKey key : JobFileKey.values()) {
      if (key.key().equals(name)) {
        return key.section() == JobFileKey.Section.JOB
            ? "; '" + name + "' belongs at the top of the file"
            : "; '" + name + "' belongs under " + key.section().path();
      }
    }
    return "";
  }

  private static String plain(String key) {
    return key.toLowerCase(Locale.ROOT).replaceAll("[^a-z0-9]", "");
  }

  /** Insertions, deletions and replacements that lead from one text to the other. */
  private static int distance(String a, String b) {
    int[] row = new int[b.length() + 1];
    for (int j = 0; j <= b.length(); j++) {
      row[j] = j;
    }
    for (int i = 1; i <= a.length(); i++) {
      int diagonal = row[0];
      row[0] = i;
      for (int j = 1; j <= b.length(); j++) {
        int replaced = diagonal + (a.charAt(i - 1) == b.charAt(j - 1) ? 0 : 1);
        diagonal = row[j];
        row[j] = Math.min(replaced, 1 + Math.min(row[j], row[j - 1]));
      }
    }
    return row[b.length()];
  }

  String path(JobFileKey key) {
    return path.isEmpty() ? key.key() : path + "." + key.key();
  }

  /** Runs {@code build} and places its problems in this mapping. */
  <T> T within(Supplier<T> build) {
    try {
      return build.get();
    } catch (InvalidJobException e) {
      throw e.under(path);
    }
  }

  <T> T required(JobFileKey key, Optional<T> value) {
    return value.orElseThrow(
        () -> new InvalidJobException(path(key), "missing; expected " + key.accepted()));
  }

  InvalidJobException unaccepted(JobFileKey key, String got) {
    return InvalidJobException.expected(path(key), key.accepted(), "'" + got + "'");
  }

  boolean has(JobFileKey key) {
    return values.containsKey(key);
  }

  Optional<String> text(JobFileKey key) {
    return Optional.ofNullable(values.get(key))
        .map(
            node -> {
              if (node instanceof ScalarNode scalar && node.getTag().equals(Tag.STR)) {
                return scalar.getValue();
              }
              String quote = node instanceof ScalarNode ? " (quote it to make it text)" : "";
              throw mistyped(key, node, quote);
            });
  }

  Optional<Boolean> bool(JobFileKey key) {
    return Optional.ofNullable(values.get(key))
        .map(
            node -> {
              if (node instanceof ScalarNode scalar && node.getTag().equals(Tag.BOOL)) {
                return scalar.getValue().equalsIgnoreCase("true");
              }
              throw mistyped(key, node, "");
            });
  }

  Optional<Long> integer(JobFileKey key, long least, long most) {
    return Optional.ofNullable(values.get(key))
        .map(
            node -> {
              if (!(node instanceof ScalarNode scalar) || !node.getTag().equals(Tag.INT)) {
                throw mistyped(key, node, "");
              }
              BigInteger value = parseInteger(scalar.getValue());
              if (value.compareTo(BigInteger.valueOf(least)) >= 0
                  && value.compareTo(BigInteger.valueOf(most)) <= 0) {
                return value.longValue();
              }
              throw InvalidJobException.expected(path(key), key.accepted(), scalar.getValue());
            });
  }

  Optional<Double> number(JobFileKey key) {
    return Optional.ofNullable(values.get(key))
        .map(node -> parseNumber(node).orElseThrow(() -> mistyped(key, node, "")));
  }

  /** A number above 0 that a float can hold. */
  Optional<Float> positive(JobFileKey key) {
    return number(key)
        .map(
            value -> {
              float rounded = value.floatValue();
              if (!(rounded > 0) || Float.isInfinite(rounded)) {
                throw InvalidJobException.expected(path(key), key.accepted(), value);
              }
              return rounded;
            });
  }

  Optional<List<Float>> numbers(JobFileKey key, int count) {
    return Optional.ofNullable(values.get(key))
        .map(
            node -> {
              if (!(node instanceof SequenceNode sequence)) {
                throw mistyped(key, node, "");
              }
              List<Float> numbers = new ArrayList<>();
              for (Node item : sequence.getValue()) {
                String itemPath = path(key) + "[" + numbers.size() + "]";
                item.getStartMark().ifPresent(m -> marks.put(itemPath, m));
                numbers.add(
                    parseNumber(item)
                        .map(Double::floatValue)
                        .orElseThrow(
                            () ->
                                InvalidJobException.expected(
                                    itemPath, "a finite number", describe(item))));
              }
              if (numbers.isEmpty()) {
                throw InvalidJobException.expected(
                    path(key), "num_heads = " + count + " numbers", "an empty list");
              }
              return numbers;
            });
  }

  Optional<YamlMapping> mapping(JobFileKey key, JobFileKey.Section section) {
    return Optional.ofNullable(values.get(key)).map(node -> of(node, section, path(key), marks));
  }

  List<YamlMapping> mappings(JobFileKey key, JobFileKey.Section section) {
    Node node = required(key, Optional.ofNullable(values.get(key)));
    if (!(node instanceof SequenceNode sequence)) {
      throw mistyped(key, node, "");
    }
    List<YamlMapping> mappings = new ArrayList<>();
    for (Node item : sequence.getValue()) {
      mappings.add(of(item, section, path(key) + "[" + mappings.size() + "]", marks));
    }
    return mappings;
  }

  private InvalidJobException mistyped(JobFileKey key, Node node, String hint) {
    return InvalidJobException.expected(path(key), key.accepted(), describe(node) + hint);
  }

  private static Optional<Double> parseNumber(Node node) {
    if (!(node instanceof ScalarNode scalar)) {
      return Optional.empty();
    }
    String text = scalar.getValue();
    if (node.getTag().equals(Tag.INT)) {
      return Optional.of(parseInteger(text).doubleValue());
    }
    if (!node.getTag().equals(Tag.FLOAT)) {
      return Optional.empty();
    }
    String plain = text.toLowerCase(Locale.ROOT);
    if (plain.endsWith(".inf")) {
      return Optional.of(
          plain.startsWith("-") ? Double.NEGATIVE_INFINITY : Double.POSITIVE_INFINITY);
    }
    return Optional.of(plain.equals(".nan") ? Double.NaN : Double.parseDouble(plain));
  }

  /** Reads the integers of YAML's core schema: decimal, 0o octal, 0x hexadecimal. */
  private static BigInteger parseInteger(String text) {
    if (text.startsWith("0x")) {
      return new BigInteger(text.substring(2), 16);
    }
    return text.startsWith("0o") ? new BigInteger(text.substring(2), 8) : new BigInteger(text);
  }

  static String describe(Node node) {
    if (node instanceof MappingNode) {
      return "a mapping";
    }
    if (node instanceof SequenceNode) {
      return "a list";
    }
    String value = ((ScalarNode) node).getValue();
    if (node.getTag().equals(Tag.STR)) {
      return "'" + value + "'";
    }
    return node.getTag().equals(Tag.NULL) ? "nothing" : value;
  }
}
