"""Shows the demo model at work, and what to do next.

tclip demo
"""

from collections.abc import Sequence

import tclip
from tclip import demo
from tclip.cli.classify import classify, table

SHOWN = 3
NEXT = """Next (ID: any CLIP of the Hugging Face hub; training: pip install 'tclip[train]'):
  tclip classify photo.jpg                                   your own picture, the same model
  tclip classify --model=ID photo.jpg --labels="a cat,a dog" another model
  tclip export --workdir=ID --policy=blocks+proj --out=DIR   pack a CLIP without training
  tclip train --config=vit_b32 --config.teacher.path=ID --config.train_data.source=wds:SHARDS \\
    --workdir=DIR                                            compress a CLIP, with training
  tclip train --config=shapes:teacher --workdir=DIR          train a small one on rendered scenes
  tclip COMMAND --help                                       flags and examples of a command

All of it is explained in the README and docs/ of tclip."""


def main(argv: Sequence[str]) -> None:
    if argv[1:]:
        raise ValueError(f"unexpected argument {argv[1]!r}")
    model = tclip.load(demo.MODEL)
    size = sum(file.stat().st_size for file in demo.MODEL.iterdir())
    print(f"A ternary CLIP of {size / 1000:.0f} kB: {demo.MODEL}\n")
    images = [str(picture) for picture in demo.PICTURES]
    for image, ranked in classify(model, images, demo.LABELS, [demo.TEMPLATE]):
        if isinstance(ranked, Exception):
            raise ranked
        print(table(image, ranked[:SHOWN]) + "\n")
    print(NEXT)
