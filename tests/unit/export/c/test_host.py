import numpy as np
import pytest
from c_programs import made, needs_compiler
from torch import nn

from crbg import CrbgError
from crbg.export.c import to_c
from crbg.export.c.host import Built


def test_a_missing_compiler_is_one_clear_error(tmp_path, monkeypatch):
    to_c(nn.Sequential(nn.Linear(2, 2)), tmp_path, in_shape=(2,))
    monkeypatch.setenv("CC", "no-such-compiler -m32")
    with pytest.raises(CrbgError, match=r"no C compiler found \(no-such-compiler -m32\), .* install gcc or clang"):
        Built(tmp_path)


@needs_compiler
def test_an_error_of_the_compiler_is_reported(tmp_path):
    to_c(nn.Sequential(nn.Linear(2, 2)), tmp_path, in_shape=(2,))
    (tmp_path / "model.c").write_text("#error broken\n")
    with pytest.raises(CrbgError, match=r"cannot compile .*model\.c: .*broken"):
        Built(tmp_path)


@needs_compiler
def test_inputs_of_another_size_are_refused(tmp_path):
    model, _ = made("linear")
    to_c(model, tmp_path, in_shape=(9,), name="other")
    program = Built(tmp_path, "other", ("-O0",))
    assert (program.inputs, program.outputs, program.batched) == (9, 4, True)
    with pytest.raises(CrbgError, match="takes 9 values per input, not 8"):
        program.predict(np.zeros((3, 8), np.float32))
