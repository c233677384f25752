"""Which weights of a CLIP a policy may name: those that the layers can use once they are packed."""

import dataclasses
import functools
import re

import jax
import pytest

from tclip.export import export_packed
from tclip.models import ClipPolicy, init_params
from tclip.quant import ternary_paths
from tests.helpers import tiny


def shapes(scan_layers: bool):
    config = dataclasses.replace(tiny.config(), scan_layers=scan_layers)
    return jax.eval_shape(functools.partial(init_params, config), jax.random.key(0))


@pytest.mark.parametrize(
    ("pattern", "scan_layers", "leaf"),
    [
        (".*/position_embedding", False, "position_embedding"),
        (".*/bias", True, "bias"),
        (".*/scale", True, "scale"),
        (r"text/.*", False, "text/"),
    ],
)
def test_what_no_layer_can_use_packed_is_refused(pattern, scan_layers, leaf):
    policy = ClipPolicy(policy=rf".*/kernel,{pattern}")
    with pytest.raises(ValueError, match=f"{re.escape(leaf)}.*only kernels"):
        ternary_paths(shapes(scan_layers), policy)


@pytest.mark.parametrize("policy", ["ffn", "blocks", "blocks+proj", "all", r".*/kernel"])
@pytest.mark.parametrize("scan_layers", [False, True])
def test_presets_and_kernels_are_accepted(policy, scan_layers):
    paths = ternary_paths(shapes(scan_layers), ClipPolicy(policy=policy))
    assert all(path.endswith(("kernel", "token_embedding/embedding")) for path in paths)


def test_export_encodes_before_it_is_done(tmp_path, monkeypatch):
    workdir = tiny.write_workdir(tmp_path / "run", quant=tiny.POLICY)

    def broken(self, texts):
        raise ValueError("this model cannot run")

    monkeypatch.setattr("tclip.export.Model.encode_text", broken)
    with pytest.raises(ValueError, match="cannot run"):
        export_packed(workdir, tmp_path / "packed")
