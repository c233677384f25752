"""HLO text is read, and counted, as written; the snippets are of the form that XLA prints."""

import pytest

from tclip.plan.collectives import Traffic, first_group, traffic
from tclip.plan.costs import hbm_bytes, matrix_flops
from tclip.plan.hlo import Array, parse_module

TILES = "{1,0:T(8,128)(2,1)}"
PAIRS = "replica_groups=[2,2]<=[4]"

# A scan of five steps over weights [5, 8, 4]: each gathers its own and multiplies by it. What is
# marked S(1) is kept in the memory of the core.
LOOP = f"""\
HloModule jit_step, is_scheduled=true, entry_computation_layout={{(bf16[16,8]{{1,0}})->bf16[16,8]}}

%fused_slice (p0: bf16[5,8,4], p1: s32[]) -> bf16[8,4] {{
  %p0 = bf16[5,8,4]{{2,1,0:T(8,128)(2,1)}} parameter(0)
  %p1 = s32[]{{:T(128)S(6)}} parameter(1)
  %zero = s32[]{{:T(128)}} constant(0)
  %row = bf16[1,8,4]{{2,1,0}} dynamic-slice(%p0, %p1, %zero, %zero), dynamic_slice_sizes={{1,8,4}}
  ROOT %bitcast = bf16[8,4]{TILES} bitcast(%row)
}}

%fused_product (x: bf16[16,8], w: bf16[8,8]) -> bf16[16,8] {{
  %x = bf16[16,8]{TILES} parameter(0)
  %w = bf16[8,8]{TILES} parameter(1)
  ROOT %product = bf16[16,8]{TILES} convolution(%x, %w), dim_labels=bf_io->bf
}}

%body (carry: (s32[], bf16[16,8], bf16[5,8,4])) -> (s32[], bf16[16,8], /*index=2*/bf16[5,8,4]) {{
  %carry = (s32[]{{:T(128)}}, bf16[16,8]{TILES}, /*index=2*/bf16[5,8,4]{{2,1,0}}) parameter(0)
  %i = s32[]{{:T(128)}} get-tuple-element(%carry), index=0
  %one = s32[]{{:T(128)S(6)}} constant(1)
  %next = s32[]{{:T(128)S(6)}} add(%i, %one)
  %y = bf16[16,8]{TILES} get-tuple-element(%carry), index=1
  %layers = bf16[5,8,4]{{2,1,0}} get-tuple-element(%carry), index=2
  %layer = bf16[8,4]{{1,0:T(8,128)(2,1)S(1)}} fusion(%layers, %i), kind=kLoop, calls=%fused_slice
  %whole = bf16[8,8]{TILES} all-gather(%layer), {PAIRS}, metadata={{op_name="f)("}}
  %z = bf16[16,8]{TILES} fusion(%y, %whole), kind=kOutput, calls=%fused_product
  ROOT %out = (s32[]{{:T(128)}}, bf16[16,8]{TILES}, bf16[5,8,4]{{2,1,0}}) tuple(%next, %z, %layers)
}}

%compare (a: s32[], b: s32[]) -> pred[] {{
  %a = s32[]{{:T(128)}} parameter(0)
  %b = s32[]{{:T(128)}} parameter(1)
  ROOT %less = pred[]{{:T(512)}} compare(%a, %b), direction=LT
}}

%condition (state: (s32[], bf16[16,8], bf16[5,8,4])) -> pred[] {{
  %state = (s32[]{{:T(128)}}, bf16[16,8]{TILES}, bf16[5,8,4]{{2,1,0}}) parameter(0)
  %count = s32[]{{:T(128)}} get-tuple-element(%state), index=0
  %limit = s32[]{{:T(128)}} constant(5)
  ROOT %more = pred[]{{:T(512)}} fusion(%count, %limit), kind=kLoop, calls=%compare
}}

ENTRY %main (x: bf16[16,8], w: bf16[5,8,4]) -> bf16[16,8] {{
  %x = bf16[16,8]{TILES} parameter(0), sharding={{devices=[4,1]<=[4]}}
  %w = bf16[5,8,4]{{2,1,0:T(8,128)(2,1)}} parameter(1)
  %start = s32[]{{:T(128)S(6)}} constant(0)
  %init = (s32[], bf16[16,8]{TILES}, bf16[5,8,4]{{2,1,0}}) tuple(%start, %x, %w)
  %loop = (s32[], bf16[16,8], bf16[5,8,4]) while(%init), condition=%condition, body=%body
  ROOT %last = bf16[16,8]{TILES} get-tuple-element(%loop), index=1
}}
"""


def program(*lines: str, before: str = ""):
    """A module whose entry has these instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return parse_module(f"HloModule m\n\n{before}\nENTRY %main () -> f32[] {{\n{body}\n}}\n")


def last(module):
    return list(module.computations[module.entry].instructions.values())[-1]


def test_instructions_of_a_loop():
    module = parse_module(LOOP)
    assert module.entry == "main"
    body = module.computations["body"].instructions
    assert body["layer"].arrays == (Array("bf16", (8, 4), 1),)
    assert body["layer"].operands == ("layers", "i")
    assert [a.dims for a in body["carry"].arrays] == [(), (16, 8), (5, 8, 4)]
    assert body["out"].is_root
    counts = {i.name: count for _, i, count in module.executed()}
    assert (counts["loop"], counts["z"], counts["last"]) == (1, 5, 1)
    assert "product" not in counts


def test_what_a_loop_multiplies():
    assert matrix_flops(parse_module(LOOP)) == 5 * 2 * 16 * 8 * 8


def test_what_a_loop_moves():
    # Of five times: a layer's row read; the gathered matrix written and read; x read, y written.
    # The row itself is written to the core's memory and gathered from there. Twice the counter.
    expected = 2 * (8 * 4 + 2 * 8 * 8 + 2 * 16 * 8) + 2 * 4
    assert hbm_bytes(parse_module(LOOP)) == 5 * expected


def test_what_a_loop_gathers():
    # Devices 0 and 1 are neighbours along the first dimension; each sends half of [8, 8].
    (gathered,) = traffic(parse_module(LOOP), [(0, 0), (1, 0), (0, 1), (1, 1)], slices=1)
    assert gathered == Traffic("all-gather", 1, 5, 5 * 2 * 8 * 8 / 2, 0.0)


def test_a_known_trip_count_needs_no_condition():
    text = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert matrix_flops(parse_module(text)) == 3 * 2 * 16 * 8 * 8


def test_a_loop_of_unknown_length_is_refused():
    text = LOOP.replace("%limit = s32[]{:T(128)} constant(5)", "%limit = s32[] add(%count, %count)")
    with pytest.raises(ValueError, match="loop: a loop whose length the program does not say"):
        matrix_flops(parse_module(text))


def test_other_text_is_refused():
    with pytest.raises(ValueError, match="no HLO module"):
        parse_module("module @jit_step {\n}\n")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("bf16[3,5]{1,0}", 30),
        ("s4[8]{0}", 4),
        ("pred[6]{0}", 6),
        ("f8e4m3fn[4]{0}", 4),
        ("f32[]", 4),
    ],
)
def test_bytes_of_arrays(text, size):
    (array,) = last(program(f"%x = {text} parameter(0)")).arrays
    assert array.bytes == size


@pytest.mark.parametrize(
    ("groups", "first"),
    [
        ("replica_groups={{0,2},{1,3}}", [0, 2]),
        ("replica_groups={}", list(range(8))),
        ("replica_groups=[4,2]<=[8]", [0, 1]),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", [0, 2, 4, 6]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4]),
        ("replica_groups=mesh['a'=2,'b'=2,'c'=2] {'a','c'}", [0, 1, 4, 5]),
        ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", [0, 2, 4, 6]),
        ("source_target_pairs={{3,4},{4,5}}", [3, 4]),
    ],
)
def test_groups_of_devices(groups, first):
    reduce = f"%y = f32[8]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add"
    assert first_group(last(program("%x = f32[8]{0} parameter(0)", reduce)), 8) == first


def test_groups_in_a_notation_that_is_not_read_are_refused():
    line = "%y = f32[8]{0} all-reduce(%x), replica_groups=mesh['a'=8] {'a':(1)2}, to_apply=%add"
    with pytest.raises(ValueError, match=r"y: groups that are not read: replica_groups=mesh"):
        first_group(last(program("%x = f32[8]{0} parameter(0)", line)), 8)


GROUP = "channel_id=1, replica_groups={{0,1,2,3}}"
SQUARE = [(0, 0), (1, 0), (0, 1), (1, 1)]


@pytest.mark.parametrize(
    ("line", "kind", "sent"),
    [
        (f"f32[100]{{0}} all-reduce(%x), {GROUP}, to_apply=%add", "all-reduce", 600),
        (f"f32[100]{{0}} all-reduce-start(%x), {GROUP}, to_apply=%add", "all-reduce", 600),
        (f"f32[25]{{0}} reduce-scatter(%x), {GROUP}, dimensions={{0}}", "reduce-scatter", 300),
        (f"f32[400]{{0}} all-gather(%x), {GROUP}, dimensions={{0}}", "all-gather", 1200),
        (
            f"(f32[100]{{0}}, f32[400]{{0}}) all-gather-start(%x), {GROUP}, dimensions={{0}}",
            "all-gather",
            1200,
        ),
        (f"f32[100]{{0}} all-to-all(%x), {GROUP}, dimensions={{0}}", "all-to-all", 300),
        (
            "(f32[100]{0}, f32[100]{0}, u32[], u32[]) collective-permute-start(%x), channel_id=1, "
            "source_target_pairs={{0,3},{3,0}}",
            "collective-permute",
            400,
        ),
    ],
)
def test_what_collectives_send(line, kind, sent):
    module = program("%x = f32[100]{0} parameter(0)", f"%y = {line}")
    assert traffic(module, SQUARE, slices=1) == [Traffic(kind, 2, 1, sent, 0.0)]


SCATTERING = f"""
%all-reduce-scatter.1 (input: f32[100]) -> f32[25] {{
  %input = f32[100]{{0}} parameter(0)
  %sum = f32[100]{{0}} all-reduce(%input), {GROUP}, to_apply=%add
  %zero = s32[] constant(0)
  ROOT %part = f32[25]{{0}} dynamic-slice(%sum, %zero), dynamic_slice_sizes={{25}}
}}
"""


def test_an_all_reduce_that_keeps_a_part_is_a_reduce_scatter():
    line = "%y = f32[25]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1"
    module = program("%x = f32[100]{0} parameter(0)", line, before=SCATTERING)
    assert traffic(module, SQUARE, slices=1) == [Traffic("reduce-scatter", 2, 1, 300, 0.0)]


OVERLAPPED = "".join(
    f"""
%async_fusion.{n} (p: f32[100]) -> f32[400] {{
  %p = f32[100]{{0}} parameter(0)
  ROOT %g.{n} = f32[400]{{0}} all-gather(%p), {GROUP}, frontend_attributes={{chain_id="4"}}
}}
"""
    for n in (1, 2, 3)
)


def test_a_collective_in_steps_counts_once():
    steps = [f"%y.{n} = f32[400]{{0}} fusion(%x), calls=%async_fusion.{n}" for n in (1, 2, 3)]
    module = program("%x = f32[100]{0} parameter(0)", *steps, before=OVERLAPPED)
    assert traffic(module, SQUARE, slices=1) == [Traffic("all-gather", 2, 1, 1200, 0.0)]


@pytest.mark.parametrize(
    ("kind", "sent"), [("all-reduce", 2 * 400 * 2 / 3), ("all-gather", 400 * 2)]
)
def test_what_is_sent_between_slices(kind, sent):
    line = (
        "%s = (f32[100]{0}, u32[], token[]) send(%x, %t), channel_id=2, is_host_transfer=true, "
        f'frontend_attributes={{_xla_host_transfer_rendezvous="{kind}.148_0"}}'
    )
    module = program("%x = f32[100]{0} parameter(0)", "%t = token[] after-all()", line)
    (between,) = traffic(module, SQUARE * 3, slices=3)
    assert between == Traffic(kind, 0, 1, 0.0, pytest.approx(sent))


@pytest.mark.parametrize(
    ("line", "flops"),
    [
        # [16, 32] x [32, 8].
        ("f32[16,8] dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 8192),
        # Images [2, 9, 9, 4], windows of 3 x 3, 16 features; with padding the border has less.
        (
            "f32[2,7,7,16] convolution(%c, %d), window={size=3x3}, dim_labels=b01f_01io->b01f",
            2 * 2 * 7**2 * 3**2 * 4 * 16,
        ),
        (
            "f32[2,9,9,16] convolution(%c, %d), window={size=3x3 pad=1_1x1_1}, "
            "dim_labels=b01f_01io->b01f",
            2 * 2 * (7 * 3 + 2 * 2) ** 2 * 4 * 16,
        ),
        # Six products [5, 4] x [4, 3]: the batch as a window that meets itself in one place each.
        (
            "f32[6,5,3] convolution(%e, %f), window={size=6 stride=5 pad=0_0 lhs_dilate=6}, "
            "dim_labels=0bf_0io->0bf",
            6 * 2 * 5 * 4 * 3,
        ),
    ],
)
def test_operations_of_products(line, flops):
    left = {"a": "16,32", "c": "2,9,9,4", "e": "6,5,4"}
    inputs = left | {"b": "32,8", "d": "3,3,4,16", "f": "6,4,3"}
    lines = [f"%{name} = f32[{dims}] parameter(0)" for name, dims in inputs.items()]
    assert matrix_flops(program(*lines, f"%y = {line}")) == flops


UPDATE = """
%fused_update (stack: f32[10,100], x: f32[1,100], i: s32[]) -> f32[10,100] {
  %stack = f32[10,100]{1,0} parameter(0)
  %x = f32[1,100]{1,0} parameter(1)
  %i = s32[]{:S(6)} parameter(2)
  %zero = s32[] constant(0)
  ROOT %new = f32[10,100]{1,0} dynamic-update-slice(%stack, %x, %i, %zero)
}
"""


@pytest.mark.parametrize(
    ("line", "size"),
    [
        # Read x, write the row of the stack in place.
        ("f32[10,100]{1,0} fusion(%stack, %x, %i), kind=kLoop, calls=%fused_update", 800),
        ("f32[10,100]{1,0} dynamic-update-slice(%stack, %x, %i, %i)", 800),
        ("f32[1,100]{1,0} dynamic-slice(%stack, %i, %i), dynamic_slice_sizes={1,100}", 800),
        # Prefetched into the core's memory: the slice is read, nothing written.
        ("((f32[10,100]{1,0}), f32[5,100]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%stack)", 2000),
        ("(f32[1,100]{1,0:S(1)}, f32[1,100]{1,0}, u32[]{:S(2)}) copy-start(%x)", 400),
        ("f32[10,100]{1,0} copy(%stack)", 8000),
        ("f32[10,100]{1,0} bitcast(%stack)", 0),
        ('f32[10,100]{1,0} custom-call(), custom_call_target="AllocateBuffer"', 0),
    ],
)
def test_bytes_of_instructions(line, size):
    module = program(
        "%stack = f32[10,100]{1,0} parameter(0)",
        "%x = f32[1,100]{1,0} parameter(1)",
        "%i = s32[]{:S(6)} parameter(2)",
        f"%y = {line}",
        before=UPDATE,
    )
    assert hbm_bytes(module) == size
