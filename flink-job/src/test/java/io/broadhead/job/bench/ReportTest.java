// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.within;

import java.io.StringReader;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.stream.DoubleStream;
import javax.xml.parsers.DocumentBuilderFactory;
import org.junit.jupiter.api.Test;
import org.w3c.dom.Element;
import org.xml.sax.InputSource;

class ReportTest {
  private final List<Result> results = new ArrayList<>();

  private void measured(Cell cell, double microseconds, double ofRead, double torch, double onnx) {
    results.add(BenchCells.ours(cell, microseconds));
    results.add(BenchCells.other(cell, Contender.Kind.LIMIT, "read", ofRead));
    results.add(BenchCells.other(cell, Contender.Kind.PEER, "torch", torch));
    results.add(BenchCells.other(cell, Contender.Kind.PEER, "onnxruntime", onnx));
  }

  private void measureTwoCells() {
    measured(BenchCells.decode("llama-3-8b", 8, 4096, 2), 7130, 0.81, 16, 2);
    measured(BenchCells.decode("gpt-2", 1, 512, 2), 67.3, 0.9, 4, 8);
  }

  @Test
  void tableHoldsRatesLimitsAndPeers() {
    measureTwoCells();

    assertThat(new Report(results).text())
        .containsExactly(
            "model       dtype    sequences  threads      ms  tokens/s  GB/s  GFLOP/s  of read"
                + "  garbage B  torch  onnxruntime  strongest",
            "-".repeat(123),
            "llama-3-8b  float16  8x1@4096         2    7.13      1120  18.8     75.3     0.81"
                + "        776  16.00         2.00       2.00",
            "gpt-2       float16  1x1@512          2  0.0673     14900  23.4     23.4     0.90"
                + "        776   4.00         8.00       4.00",
            "of read: 0.85 in the geometric mean of 2 cells, 0.81 at least (decode llama-3-8b"
                + " float16 8x1@4096, 2 threads)",
            "times as fast as torch: 8.00 in the geometric mean of 2 cells, 4.00 at least (decode"
                + " gpt-2 float16 1x1@512, 2 threads)",
            "times as fast as onnxruntime: 4.00 in the geometric mean of 2 cells, 2.00 at least"
                + " (decode llama-3-8b float16 8x1@4096, 2 threads)",
            "times as fast as the strongest peer: 2.83 in the geometric mean of 2 cells, 2.00 at"
                + " least (decode llama-3-8b float16 8x1@4096, 2 threads)",
            "");
  }

  @Test
  void runsOfOneCellAreJoined() {
    Cell cell = BenchCells.decode("gpt-2", 1, 512, 2);
    measured(cell, 60, 0.8, 4, 8);
    measured(cell, 80, 0.9, 6, 8);

    List<String> lines = new Report(results).markdown();

    assertThat(lines).contains("### decode, float16, 2 threads");
    assertThat(lines.stream().filter(line -> line.startsWith("| gpt-2")))
        .singleElement()
        .asString()
        .contains(" 0.85 |", " 5.00 |");
    assertThat(lines)
        .contains(
            "| ----- | ------- | --------- | ------: | -----: | -------: | ---: | ------: | ------: | --------: | ----: | ----------: | --------: |");
  }

  @Test
  void tablesAreOfOneModeTypeAndNumberOfThreads() {
    measureTwoCells();
    measured(BenchCells.decode("gpt-2", 1, 512, 1), 120, 0.9, 4, 8);

    assertThat(new Report(results).markdown())
        .contains("### decode, float16, 2 threads", "### decode, float16, 1 thread");
  }

  @Test
  void chartsAreDrawn() throws Exception {
    measureTwoCells();
    for (int batch : new int[] {1, 2, 4, 8}) {
      measured(BenchCells.decode("gemma", batch, 4096, 2), 800 * batch, 0.7, 3, 2);
    }

    Map<String, String> charts = new Report(results).charts();

    assertThat(charts.keySet())
        .containsExactly(
            "decode-float16-2-threads-limits.svg",
            "decode-float16-2-threads-peers.svg",
            "growth-batch.svg");
    Element limits = parse(charts.get("decode-float16-2-threads-limits.svg"));
    // One bar for each cell, one in the legend, and the background.
    assertThat(limits.getElementsByTagName("rect").getLength()).isEqualTo(6 + 1 + 1);
    Element growth = parse(charts.get("growth-batch.svg"));
    assertThat(growth.getElementsByTagName("circle").getLength()).isEqualTo(4);
  }

  private static Element parse(String svg) throws Exception {
    return DocumentBuilderFactory.newInstance()
        .newDocumentBuilder()
        .parse(new InputSource(new StringReader(svg)))
        .getDocumentElement();
  }

  @Test
  void scalesReachFromTickToTick() {
    LogAxis axis = LogAxis.over(10, DoubleStream.of(0.1, 30));
    assertThat(axis.ticks()).containsExactly(0.1, 1, 10, 100);
    assertThat(axis.place(0.1)).isEqualTo(0, within(1e-12));
    assertThat(axis.place(100)).isEqualTo(1, within(1e-12));
    assertThat(LogAxis.over(2, DoubleStream.of(8)).ticks()).containsExactly(8, 16);
  }
}
