"""Small tar shards for the tests of data."""

import io
import tarfile

from PIL import Image


def png(value):
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (value % 256, 0, 0)).save(out, format="PNG")
    return out.getvalue()


def write_tar(path, members, **options):
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def pairs(numbers):
    for i in numbers:
        yield f"{i:05}.json", b"{}"
        yield f"{i:05}.png", png(i)
        yield f"{i:05}.txt", f"number {i}\n\n  again {i} \n".encode()
