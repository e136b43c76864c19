// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import java.io.Serializable;
import java.util.Arrays;
import java.util.List;
import java.util.Locale;
import java.util.Optional;
import java.util.stream.Collectors;

/**
 * How the frequencies of a rotary embedding are stretched beyond the context a model was trained
 * on. The parameters have the names and meanings of Hugging Face model configurations ({@code
 * rope_scaling}). Immutable.
 *
 * <p>{@code dynamic} grows its base with the length of the sequence. Keys stay in the cache as they
 * were rotated, so one length has to serve all of them: the rope's {@code max_position}. With
 * {@code max_position} up to {@code original_max_position_embeddings} nothing is scaled.
 *
 * @param type which rule
 * @param factor by how much the context is stretched, at least 1; not used by {@code default}
 * @param originalMaxPosition context the model was trained on; 0 where the rule has no use for it
 * @param lowFreqFactor llama3: wavelengths above original context / this are stretched in full
 * @param highFreqFactor llama3: wavelengths below original context / this are left alone
 * @param betaFast yarn: rotations within the original context above which a pair is left alone
 * @param betaSlow yarn: rotations below which a pair is stretched in full
 * @param truncate yarn: whether the two bounds are rounded outward to whole pairs
 * @param attentionFactor yarn: what cosines and sines are multiplied by
 */
public record RopeScaling(
    Type type,
    double factor,
    long originalMaxPosition,
    double lowFreqFactor,
    double highFreqFactor,
    double betaFast,
    double betaSlow,
    boolean truncate,
    double attentionFactor)
    implements Serializable {

  /** The rules, as {@code rope_type} names them. */
  public enum Type {
    DEFAULT,
    LINEAR,
    DYNAMIC,
    LLAMA3,
    YARN;

    static final String NAMES =
        Arrays.stream(values()).map(Type::text).collect(Collectors.joining(", "));

    String text() {
      return name().toLowerCase(Locale.ROOT);
    }

    static Optional<Type> parse(String text) {
      return Arrays.stream(values()).filter(type -> type.text().equals(text)).findFirst();
    }

    /** Whether the rule has a use for {@code key} of {@link JobFileKey.Section#ROPE_SCALING}. */
    boolean uses(JobFileKey key) {
      return switch (key) {
        case ROPE_TYPE -> true;
        case FACTOR -> this != DEFAULT;
        case ORIGINAL_MAX_POSITION_EMBEDDINGS -> needsOriginalContext();
        case LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR -> this == LLAMA3;
        default -> this == YARN;
      };
    }

    boolean needsOriginalContext() {
      return this == DYNAMIC || this == LLAMA3 || this == YARN;
    }
  }

  static final double DEFAULT_BETA_FAST = 32;
  static final double DEFAULT_BETA_SLOW = 1;

  /** Frequencies as they are. */
  static final RopeScaling NONE =
      new RopeScaling(Type.DEFAULT, 1, 0, 1, 2, DEFAULT_BETA_FAST, DEFAULT_BETA_SLOW, true, 1);

  public RopeScaling {
    require(JobFileKey.FACTOR, factor >= 1 && factor < Double.POSITIVE_INFINITY, factor);
    require(
        JobFileKey.ORIGINAL_MAX_POSITION_EMBEDDINGS,
        !type.needsOriginalContext() || originalMaxPosition >= 1,
        originalMaxPosition);
    require(JobFileKey.LOW_FREQ_FACTOR, lowFreqFactor > 0, lowFreqFactor);
    require(JobFileKey.HIGH_FREQ_FACTOR, highFreqFactor > lowFreqFactor, highFreqFactor);
    require(JobFileKey.BETA_SLOW, betaSlow > 0, betaSlow);
    require(JobFileKey.BETA_FAST, betaFast >= betaSlow, betaFast);
    require(
        JobFileKey.ATTENTION_FACTOR,
        attentionFactor > 0 && attentionFactor <= Float.MAX_VALUE,
        attentionFactor);
  }

  private static void require(JobFileKey key, boolean holds, Object got) {
    if (!holds) {
      throw InvalidJobException.expected(key.key(), key.accepted(), got);
    }
  }

  // By hand where tasks compare: see "Class loaders" in flink-job/cluster/README.md.
  @Override
  public boolean equals(Object other) {
    return other instanceof RopeScaling o && parts().equals(o.parts());
  }

  @Override
  public int hashCode() {
    return parts().hashCode();
  }

  private List<Object> parts() {
    return List.of(
        type,
        factor,
        originalMaxPosition,
        lowFreqFactor,
        highFreqFactor,
        betaFast,
        betaSlow,
        truncate,
        attentionFactor);
  }

  /**
   * YaRN's temperature for a stretch of {@code factor}, weighted by {@code mscale}: Peng et al.,
   * "YaRN: Efficient Context Window Extension of Large Language Models", section 3.4.
   */
  static double yarnTemperature(double factor, double mscale) {
    return factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1;
  }

  /**
   * Angle per position of each pair, [rotaryDim / 2].
   *
   * @param maxPosition positions that the table will serve
   */
  double[] frequencies(int rotaryDim, double base, int maxPosition) {
    double[] plain = new double[rotaryDim / 2];
    double scaledBase = type == Type.DYNAMIC ? dynamicBase(rotaryDim, base, maxPosition) : base;
    for (int j = 0; j < plain.length; j++) {
      plain[j] = Math.pow(scaledBase, -2.0 * j / rotaryDim);
    }
    switch (type) {
      case LINEAR -> {
        for (int j = 0; j < plain.length; j++) {
          plain[j] /= factor;
        }
      }
      case LLAMA3 -> stretchByWavelength(plain);
      case YARN -> stretchByRotations(plain, rotaryDim, base);
      default -> {}
    }
    return plain;
  }

  private double dynamicBase(int rotaryDim, double base, int maxPosition) {
    double length = Math.max(maxPosition, originalMaxPosition);
    double stretch = factor * length / originalMaxPosition - (factor - 1);
    return base * Math.pow(stretch, rotaryDim / (rotaryDim - 2.0));
  }

  /** Llama 3: long wavelengths by the factor, short ones not, those between in proportion. */
  private void stretchByWavelength(double[] frequencies) {
    for (int j = 0; j < frequencies.length; j++) {
      double rotations = originalMaxPosition * frequencies[j] / (2 * Math.PI);
      double kept = (rotations - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
      frequencies[j] = blend(frequencies[j], Math.min(1, Math.max(0, kept)));
    }
  }

  /** YaRN: a linear ramp over the pairs between those that rotate often and those that do not. */
  private void stretchByRotations(double[] frequencies, int rotaryDim, double base) {
    double low = pairWithRotations(betaFast, rotaryDim, base);
    double high = pairWithRotations(betaSlow, rotaryDim, base);
    if (truncate) {
      low = Math.floor(low);
      high = Math.ceil(high);
    }
    low = Math.max(low, 0);
    high = Math.min(high, rotaryDim - 1);
    double width = high == low ? 0.001 : high - low;
    for (int j = 0; j < frequencies.length; j++) {
      double stretched = Math.min(1, Math.max(0, (j - low) / width));
      frequencies[j] = blend(frequencies[j], 1 - stretched);
    }
  }

  /** Index of the pair that rotates so many times within the original context. */
  private double pairWithRotations(double rotations, int rotaryDim, double base) {
    double wavelength = originalMaxPosition / (rotations * 2 * Math.PI);
    return rotaryDim * Math.log(wavelength) / (2 * Math.log(base));
  }

  private double blend(double frequency, double kept) {
    return frequency * kept + frequency / factor * (1 - kept);
  }
}
