"""Data: sources of images and captions, transforms, tokenizer, and the Grain pipeline."""

from tclip.data.mixture import Mixture, open_mixture
from tclip.data.pipeline import View, batch_keys, eval_batches, train_batches
from tclip.data.preprocessor_config import load_preprocess, save_preprocess
from tclip.data.pretrained_tokenizer import load_pretrained_tokenizer
from tclip.data.source import BadSample, Sample, Source, SourceConfig, open_source
from tclip.data.tokenizer import Tokenizer, clip_tokenizer, load_tokenizer, train_tokenizer
from tclip.data.transforms import PreprocessConfig, augment, decode_image, preprocess

__all__ = [
    "BadSample",
    "Mixture",
    "PreprocessConfig",
    "Sample",
    "Source",
    "SourceConfig",
    "Tokenizer",
    "View",
    "augment",
    "batch_keys",
    "clip_tokenizer",
    "decode_image",
    "eval_batches",
    "load_preprocess",
    "load_pretrained_tokenizer",
    "load_tokenizer",
    "open_mixture",
    "open_source",
    "preprocess",
    "save_preprocess",
    "train_batches",
    "train_tokenizer",
]
