// SPDX-License-Identifier: Apache-2.0
package io.broadhead.attention.job;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;
import static org.assertj.core.api.Assertions.within;

import java.util.List;
import org.assertj.core.data.Offset;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.params.ParameterizedTest;
import org.junit.jupiter.params.provider.MethodSource;

/** Frequencies against those that Hugging Face transformers 5.18 computes in float32. */
class RopeScalingTest {
  private static final Offset<Double> FLOAT_ROUNDING = within(1e-6);

  record Case(String rope, double attentionFactor, double... frequencies) {}

  static List<Case> cases() {
    return List.of(
        new Case(
            "max_position: 8192, rope_scaling: {rope_type: linear, factor: 4.0}",
            1,
            0.25,
            0.07905694097280502,
            0.02500000037252903,
            0.007905694656074047,
            0.0024999999441206455,
            0.0007905694656074047,
            0.0002500000118743628,
            7.905694656074047e-05),
        new Case(
            "max_position: 8192, rope_scaling: {rope_type: dynamic, factor: 2,"
                + " original_max_position_embeddings: 2048}",
            1,
            1.0,
            0.2394813746213913,
            0.05735132098197937,
            0.013734571635723114,
            0.003289173822849989,
            0.0007876958698034286,
            0.00018863847071770579,
            4.517539491644129e-05),
        new Case(
            "max_position: 16, base: 500000.0, rope_scaling: {rope_type: llama3, factor: 8.0,"
                + " low_freq_factor: 1.0, high_freq_factor: 4.0,"
                + " original_max_position_embeddings: 8192}",
            1,
            1.0,
            0.193922758102417,
            0.03760603070259094,
            0.00729266507551074,
            0.0005248460220173001,
            3.428102354519069e-05,
            6.647869668086059e-06,
            1.289173155782919e-06),
        new Case(
            "max_position: 16, rope_scaling: {rope_type: yarn, factor: 4.0,"
                + " original_max_position_embeddings: 8192}",
            1.138629436111989,
            1.0,
            0.3162277638912201,
            0.10000000149011612,
            0.03162277862429619,
            0.008124999701976776,
            0.0019764236640185118,
            0.00043750001350417733,
            7.905694656074047e-05),
        new Case(
            "max_position: 16, rope_scaling: {rope_type: yarn, factor: 40.0,"
                + " original_max_position_embeddings: 4096, mscale: 1.0, mscale_all_dim: 0.707,"
                + " beta_fast: 32, beta_slow: 1, truncate: false}",
            1.0857263992561355,
            1.0,
            0.3162277638912201,
            0.10000000149011612,
            0.02771085873246193,
            0.005524062551558018,
            0.0007226381567306817,
            2.499999936844688e-05,
            7.905694474175107e-06));
  }

  @ParameterizedTest
  @MethodSource("cases")
  void stretchesFrequencies(Case expected) {
    RopeSpec rope = parse(expected.rope);
    double[] frequencies =
        rope.scaling().frequencies(rope.rotaryDim(), rope.base(), rope.maxPosition());
    assertThat(frequencies).hasSameSizeAs(expected.frequencies);
    for (int j = 0; j < frequencies.length; j++) {
      assertThat(frequencies[j] / expected.frequencies[j])
          .as("pair %d", j)
          .isCloseTo(1, FLOAT_ROUNDING);
    }
    assertThat(rope.scaling().attentionFactor()).isCloseTo(expected.attentionFactor, within(1e-7));
    assertThat((double) rope.cosSin()[0])
        .as("cosine of position 0")
        .isCloseTo(expected.attentionFactor, within(1e-6));
  }

  @Test
  void dynamicLeavesTheTrainedContextAlone() {
    RopeSpec scaled =
        parse(
            "max_position: 2048, rope_scaling: {rope_type: dynamic, factor: 8,"
                + " original_max_position_embeddings: 2048}");
    assertThat(scaled.cosSin()).containsExactly(parse("max_position: 2048").cosSin());
  }

  @Test
  void namesWhatARuleNeeds() {
    assertThatThrownBy(() -> parse("max_position: 9, rope_scaling: {rope_type: su, factor: 2}"))
        .hasMessageContaining("layers[0].rope.rope_scaling.rope_type")
        .hasMessageContaining("default, linear, dynamic, llama3, yarn")
        .hasMessageContaining("'su'");
    assertThatThrownBy(
            () ->
                parse(
                    "max_position: 9, rope_scaling: {rope_type: linear, factor: 2, beta_fast: 3}"))
        .hasMessageContaining("rope_scaling.beta_fast: expected no such key")
        .hasMessageContaining("rope_type linear");
    assertThatThrownBy(() -> parse("max_position: 9, rope_scaling: {rope_type: linear}"))
        .hasMessageContaining("rope_scaling.factor: missing");
    assertThatThrownBy(() -> parse("max_position: 9, rope_scaling: {rope_type: yarn, factor: 2}"))
        .hasMessageContaining("rope_scaling.original_max_position_embeddings: missing");
    String yarn = "rope_type: yarn, factor: 2, original_max_position_embeddings: 8";
    assertThatThrownBy(() -> parse("max_position: 9, rope_scaling: {" + yarn + ", mscale: 1}"))
        .hasMessageContaining("rope_scaling.mscale_all_dim: missing");
    assertThatThrownBy(
            () -> parse("max_position: 9, rope_scaling: {" + yarn + ", mscale_all_dim: 1}"))
        .hasMessageContaining("rope_scaling.mscale: missing");
  }

  @Test
  void refusesWhatWouldRotateByNoNumber() {
    String yarn =
        "rope_scaling: {rope_type: yarn, factor: 2, original_max_position_embeddings: 4096";
    for (String factor : List.of(".inf", ".nan", "1e39")) {
      assertThatThrownBy(
              () -> parse("max_position: 9, " + yarn + ", attention_factor: " + factor + "}"))
          .hasMessageContaining("rope_scaling.attention_factor: expected number above 0");
    }
    assertThatThrownBy(() -> parse("max_position: 9, base: 1, " + yarn + "}"))
        .hasMessageContaining("rope.base: expected a base")
        .hasMessageContaining("got 1.0");
  }

  private static RopeSpec parse(String rope) {
    return JobFile.parse(
            "layers: [{name: a, num_heads: 1, head_size: 32, attn_type: encoder,"
                + " rope: {rotary_dim: 16, "
                + rope
                + "}}]",
            "job.yaml")
        .layers()
        .get(0)
        .rope();
  }
}
