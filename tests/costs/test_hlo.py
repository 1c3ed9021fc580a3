"""Reading a compiled program: what its collectives and its arrays amount to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rfq import sharding
from rfq.costs import hlo

# ruff: noqa: E501
# As XLA prints them on CPU, GPU (asynchronous, "-start" and "-done") and TPU (tiles).
HLO = """
HloModule jit_train, entry_computation_layout={(f32[8,4]{1,0})->f32[8,4]{1,0}}
%body (p: f32[4]) -> f32[4] {
  ROOT %rs = bf16[2,4]{1,0} reduce-scatter(%x), dimensions={0}, to_apply=%add
}
%then (p: f32[4]) -> f32[4] {
  ROOT %permuted = f32[4]{0} collective-permute(%p)
}
ENTRY %main {
  %loop = f32[4]{0} while(%z), condition=%more, body=%body, backend_config={"known_trip_count":{"n":"3"},"known_init_step":{"init":"0","step":"1"}}
  %if = f32[4]{0} conditional(%i, %p, %p), branch_computations={%else, %then}
  %all-reduce.1 = (f32[32]{0}, f32[], /*index=2*/bf16[4,2]{1,0}) all-reduce(%a, %b, %c)
  %ag-start = (f32[1,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%d), dimensions={0}
  %ag-done = f32[8,4]{1,0} all-gather-done(%ag-start)
  %cp = (s8[16]{0}, s8[16]{0}, u32[], u32[]) collective-permute-start(%e)
  %a2a = f32[8,128]{1,0:T(8,128)} all-to-all(%f), metadata={op_name="all-reduce(x)"}
  %flags = pred[24]{0} all-gather(%g), dimensions={0}
  %none = f32[1000]{0} add(%h, %i), metadata={op_name="jit(f)/ all-gather(y)"}
}
"""


def test_collectives_of_a_program_are_counted_by_kind_and_as_often_as_they_run():
    assert hlo.collective_bytes(HLO) == {
        "reduce-scatter": 3 * 2 * 4 * 2,
        "all-reduce": 32 * 4 + 4 + 4 * 2 * 2,
        "all-gather": 8 * 4 * 4 + 24,
        "collective-permute": 16 + 4 * 4,
        "all-to-all": 8 * 128 * 4,
    }


@pytest.mark.mesh
def test_collectives_of_a_compiled_program_are_found():
    mesh = sharding.make_mesh(8)
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def program(x, w):
        # The sum over rows that are dealt out, and rows that everybody wants.
        return jnp.einsum("bd,bf->df", x, w), jnp.sin(x)

    compiled = jax.jit(program, in_shardings=rows, out_shardings=(whole, whole))
    x, w = (jax.ShapeDtypeStruct((16, size), np.float32) for size in (3, 5))
    text = compiled.lower(x, w).compile().as_text()
    assert hlo.collective_bytes(text) == {
        "all-reduce": 3 * 5 * 4,
        "all-gather": 16 * 3 * 4,
    }


def test_a_program_of_one_device_has_no_collectives():
    text = jax.jit(lambda x: x @ x).lower(np.ones((4, 4))).compile().as_text()
    assert hlo.collective_bytes(text) == {}


@pytest.mark.mesh
def test_a_collective_in_a_loop_counts_once_a_trip():
    mesh = sharding.make_mesh(8)
    rows, whole = NamedSharding(mesh, P("data")), NamedSharding(mesh, P())

    def program(x, w):
        return jax.lax.scan(lambda w, _: (w @ (x.T @ x), None), w, None, length=5)[0]

    compiled = jax.jit(program, in_shardings=(rows, whole), out_shardings=whole)
    x, w = (jax.ShapeDtypeStruct((size, 3), np.float32) for size in (16, 3))
    found = hlo.collectives(compiled.lower(x, w).compile().as_text())
    # The compiler may move the sum out of the loop, as it does not depend on w.
    assert [(one.op, one.num_bytes) for one in found] == [("all-reduce", 36)]
    assert found[0].times in (1, 5)


def test_the_largest_array_is_found_with_its_instruction():
    text = jax.jit(lambda x: (x @ x.T).sum()).lower(np.ones((7, 3))).compile().as_text()
    made = hlo.largest(text)
    assert (made.num_bytes, made.shape) == (7 * 7 * 4, "f32[7,7]")
    assert hlo.largest("HloModule none") == hlo.Made(0, "", "")
