"""The benchmark runs, is consistent with itself, and multiplies what it says."""

import re

import jax.numpy as jnp
import numpy as np
import pytest

from tclip.bench import matmul


def test_every_product_is_timed(capsys):
    figures = matmul.run("48x32", rows="3", implementations="default,xla", repeats=2)
    assert set(figures["products"]) == {"3x48x32"}
    for products in figures["products"].values():
        assert set(products) == {
            "dense bfloat16",
            "dense int8",
            "ternary native, default",
            "ternary int8, default",
            "ternary native, xla",
            "ternary int8, xla",
            "loop alone",
        }
        assert products["dense bfloat16"]["ratio"] == 1
        for of in products.values():
            low, high = of["range"]
            assert 0 < low <= of["microseconds"] <= high
            assert of["roofline"] is None  # of this processor
    assert "/ dense bfloat16" in capsys.readouterr().out


def test_sizes_of_products():
    assert matmul.sizes("48x32,8x16", "1,3") == [(1, 48, 32), (3, 48, 32), (1, 8, 16), (3, 8, 16)]
    everything = matmul.sizes("all", "all")
    assert all(isinstance(n, int) for size in everything for n in size)
    # A token by the first feed-forward layer of ViT-B, 128 images by the larger square.
    assert {(1, 768, 3072), (128 * 197, 8192, 8192)} <= set(everything)


def test_loops_compute_the_product_with_every_weight():
    programs = matmul._programs(3, 48, 32, ["default"], weights=2, passes=3)
    rng = np.random.default_rng(0)
    x = np.asarray(jnp.asarray(rng.standard_normal((3, 48)), jnp.bfloat16), np.float64)
    codes = [rng.integers(-1, 2, (48, 32), np.int8) for _ in range(2)]
    scale = 48**-0.5
    for name, factor in (
        ("dense bfloat16", 1),
        ("dense int8", 1),
        ("ternary native, default", scale),
        ("ternary int8, default", scale),
    ):
        last_x, products = programs[name]()
        assert len(products) == 2
        for y, w in zip(products, codes, strict=True):
            bound = 2.0**-7 * (np.abs(x) @ np.abs(w)) * factor
            assert (np.abs(np.asarray(y, np.float64) - x @ w * factor) <= bound).all()
        assert jnp.isfinite(last_x.astype(jnp.float32)).all()


def test_the_compiler_keeps_all_products_in_the_loop():
    program = matmul._programs(3, 48, 32, ["default"], weights=2, passes=3)["dense bfloat16"]
    text = program.func.as_text()
    assert len(re.findall(r" dot\(", text[: text.index("ENTRY")])) == 2


@pytest.mark.parametrize(
    ("name", "bits", "int8"),
    [
        ("dense bfloat16", 16, False),
        ("dense int8", 8, True),
        ("ternary native, default", 2, False),
        ("ternary int8, xla", 2, True),
    ],
)
def test_roofline_of_an_h100(name, bits, int8):
    for m in (1, 8192):
        compute = 2 * m * 4096 * 8192 / (989e12 * (2 if int8 else 1))
        memory = (2 * m * (4096 + 8192) + 4096 * 8192 * bits / 8) / 3350e9
        bound = matmul.roofline("NVIDIA H100 80GB HBM3", (m, 4096, 8192), name)
        assert bound == pytest.approx(max(compute, memory))
    assert matmul.roofline("cpu", (1, 1, 1), name) is None


def test_unknown_implementations_are_refused():
    with pytest.raises(ValueError, match="unknown implementation 'cuda'"):
        matmul.run("48x32", implementations="cuda")
