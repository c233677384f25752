import dataclasses
import re

import pytest

from tclip.config import build, to_dict
from tclip.models import PRESETS, ClipPolicy

TOWER = [
    "mlp/fc1/kernel",
    "mlp/fc2/kernel",
    "attn/q_proj/kernel",
    "attn/k_proj/kernel",
    "attn/v_proj/kernel",
    "attn/out_proj/kernel",
]
PROJECTIONS = ["vision/projection/kernel", "text/projection/kernel"]
EMBEDDINGS = ["text/token_embedding/embedding", "vision/patch_embed/kernel"]
BLOCKS = [
    f"{tower}/{block}/{leaf}"
    for tower in ("vision", "text")
    for block in ("blocks_0", "blocks_11", "blocks")
    for leaf in TOWER
]
FLOAT = [
    "vision/class_embedding",
    "vision/position_embedding",
    "text/position_embedding",
    "vision/ln_pre/scale",
    "text/ln_final/bias",
    "vision/blocks_0/ln_1/scale",
    "vision/blocks_0/attn/q_proj/bias",
    "text/blocks/mlp/fc1/bias",
    "logit_scale",
    "logit_bias",
]
EXPECTED = {
    "none": [],
    "ffn": [path for path in BLOCKS if "/mlp/" in path],
    "blocks": BLOCKS,
    "blocks+proj": BLOCKS + PROJECTIONS,
    "all": BLOCKS + PROJECTIONS + EMBEDDINGS,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_match_their_leaves_and_no_others(preset):
    policy = ClipPolicy(preset)
    every = BLOCKS + PROJECTIONS + EMBEDDINGS + FLOAT
    assert [path for path in every if policy.matches(path)] == EXPECTED[preset]
    assert ClipPolicy().policy == "none"


def test_patterns_match_the_whole_path():
    policy = ClipPolicy(r"text/.*kernel, vision/proj\w+/kernel")
    assert policy.patterns == (r"text/.*kernel", r"vision/proj\w+/kernel")
    assert policy.matches("text/blocks/mlp/fc1/kernel")
    assert policy.matches("vision/projection/kernel")
    assert not policy.matches("a/text/projection/kernel")
    assert not policy.matches("text/projection/kernel_2")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "row"}, "unknown group 'row'; use 'tensor', 'channel' or 'block:<size>'"),
        ({"group": "block:0"}, "unknown group 'block:0'"),
        ({"group": "block:x"}, "unknown group 'block:x'"),
        ({"group": "channel:4"}, "unknown group 'channel:4'"),
        ({"estimator": "median"}, "unknown estimator 'median'; use one of ['twn', 'optimal'"),
        ({"clip": 0.0}, "clip has to be positive, got 0.0"),
        ({"clip": float("nan")}, "clip has to be positive, got nan"),
        ({"policy": "a(b"}, "policy pattern 'a(b' is not a regular expression"),
    ],
)
def test_bad_options_are_refused_by_name(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        ClipPolicy(**changes)


def test_a_policy_is_hashable_and_survives_a_config():
    policy = ClipPolicy("all", "block:64", "optimal", learn_scale=False, clip=0.5)
    assert build(ClipPolicy, to_dict(policy)) == policy
    assert hash(policy) == hash(dataclasses.replace(policy))
