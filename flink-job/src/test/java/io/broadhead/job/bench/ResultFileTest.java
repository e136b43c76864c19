// SPDX-License-Identifier: Apache-2.0
package io.broadhead.job.bench;

import static org.assertj.core.api.Assertions.assertThat;
import static org.assertj.core.api.Assertions.assertThatThrownBy;

import io.broadhead.arrow.DType;
import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

class ResultFileTest {
  @TempDir Path temp;

  @Test
  void resultsComeBackAsTheyWere() throws IOException {
    Cell mixed =
        new Cell(
            Mode.MIXED,
            BenchCells.shape(
                Heads.parse("gemma"), DType.BFLOAT16, new Rows(8, 1, 4096), new Rows(1, 512, 512)),
            2);
    Cell update =
        new Cell(
            Mode.UPDATE,
            new StepShape(
                Heads.parse("4/2/64"),
                DType.FLOAT16,
                DType.FLOAT8_E4M3FN,
                32,
                List.of(new Rows(2, 16, 16)),
                false,
                true),
            1);
    List<Result> results =
        List.of(
            BenchCells.ours(mixed, 1234.5),
            BenchCells.other(mixed, Contender.Kind.PEER, "torch", 3.25),
            new Result(update, "copy", Contender.Kind.LIMIT, 0.0625, 0.5, 3, true, Double.NaN));
    Path file = temp.resolve("results.csv");

    ResultFile.write(file, results);

    assertThat(ResultFile.read(file)).isEqualTo(results);
    assertThat(Files.readAllLines(file).get(1))
        .startsWith(
            "mixed,gemma,8,4,256,bfloat16,bfloat16,16,8x1@4096+1x512@512,0,2,broadhead,ours")
        .contains(",1234.50,1.00000,9,0,776.000,421223,");
  }

  @Test
  void badLinesAreNamed() throws IOException {
    Path file = temp.resolve("results.csv");
    ResultFile.write(file, List.of(BenchCells.ours(BenchCells.decode("gpt-2", 1, 512, 2), 70)));
    String text = Files.readString(file);

    Files.writeString(file, text.replace(",1x1@512,", ",one,"));
    assertThatThrownBy(() -> ResultFile.read(file))
        .isInstanceOf(IOException.class)
        .hasMessageContaining(
            "results.csv: line 2: expected rows as COUNTxTOKENS@CONTEXT, got one");
    Files.writeString(file, text + "decode,gpt-2\n");
    assertThatThrownBy(() -> ResultFile.read(file))
        .hasMessageContaining("line 3: expected 21 fields");
    Files.writeString(file, text.replace("times_ours", "ratio"));
    assertThatThrownBy(() -> ResultFile.read(file))
        .hasMessageContaining("expected a column times_ours");
  }
}
