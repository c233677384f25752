"""Opening the data set that a config names."""

from tclip.data.source import SEPARATOR, Source, SourceConfig


def open_source(cfg: SourceConfig) -> Source:
    """Opens one data set, preparing or indexing it first where that has not been done.

    Raises:
      ValueError: an unknown kind of source, split or feature, or several joined by "::".
      FileNotFoundError: the data is absent.
    """
    if SEPARATOR in cfg.source:
        raise ValueError(f"{cfg.source!r}: only training mixes several sources; name one")
    # Imported here: TFDS takes long to import and most runs need one kind of source.
    kind, _, rest = cfg.source.partition(":")
    if kind == "shapes":
        from tclip.data.tfds_source import open_shapes

        return open_shapes(cfg, rest or "full")
    if kind == "tfds" and rest:
        from tclip.data.tfds_source import open_tfds

        return open_tfds(cfg, rest)
    if kind == "wds" and rest:
        from tclip.data.webdataset import open_webdataset

        return open_webdataset(cfg, rest)
    raise ValueError(
        f"unknown data source {cfg.source!r}: expected shapes, shapes:tiny, tfds:NAME, "
        "wds:PATTERN or wds:DIR"
    )
