"""From encoded images and texts to what a model takes: decoding, transforms, tokenizers."""

from tclip.processing.bad_sample import BadSample
from tclip.processing.model_inputs import ImageInput, check_inputs, read_pixels
from tclip.processing.preprocessor_config import load_preprocess, save_preprocess
from tclip.processing.pretrained_tokenizer import load_pretrained_tokenizer
from tclip.processing.tokenizer import Tokenizer, clip_tokenizer, load_tokenizer, train_tokenizer
from tclip.processing.transforms import PreprocessConfig, augment, decode_image, preprocess

__all__ = [
    "BadSample",
    "ImageInput",
    "PreprocessConfig",
    "Tokenizer",
    "augment",
    "check_inputs",
    "clip_tokenizer",
    "decode_image",
    "load_preprocess",
    "load_pretrained_tokenizer",
    "load_tokenizer",
    "preprocess",
    "read_pixels",
    "save_preprocess",
    "train_tokenizer",
]
