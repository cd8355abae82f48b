"""Image input: files -> index -> splits -> verification -> Batch (uint8 NHWC).

Every random choice is a function of (seed, stream, epoch, image index). A run's images therefore do not depend on the
number of workers or ranks, nor on where it was interrupted.
"""

from fastdarts.data import dali, placement
from fastdarts.data.array_loader import ArrayEvalLoader, ArrayLoader, Pixels
from fastdarts.data.arrays import ImageArray, read_images, sample_images
from fastdarts.data.cache import Cache, CacheLayout
from fastdarts.data.cache_loader import CacheEvalLoader, CacheLoader
from fastdarts.data.crop import crop_box, crop_words, flips
from fastdarts.data.dali import DaliLoader
from fastdarts.data.errors import DataError, InputStopped, NoTestImages
from fastdarts.data.folder import EvalLoader, FolderLoader
from fastdarts.data.index import ImageIndex, Index
from fastdarts.data.lists import read_list, unlisted, write_list
from fastdarts.data.loader import Loader
from fastdarts.data.sample import sample_root
from fastdarts.data.sampler import BatchSampler
from fastdarts.data.splits import held_back, subsets
from fastdarts.data.val_folder import evaluation_index
from fastdarts.data.verified_store import VerifiedStore
from fastdarts.data.verify import Verified, image_sizes, verify

__all__ = [
    "ArrayEvalLoader",
    "ArrayLoader",
    "BatchSampler",
    "Cache",
    "CacheEvalLoader",
    "CacheLayout",
    "CacheLoader",
    "DaliLoader",
    "DataError",
    "EvalLoader",
    "FolderLoader",
    "ImageArray",
    "ImageIndex",
    "Index",
    "InputStopped",
    "Loader",
    "NoTestImages",
    "Pixels",
    "Verified",
    "VerifiedStore",
    "crop_box",
    "crop_words",
    "dali",
    "evaluation_index",
    "flips",
    "held_back",
    "image_sizes",
    "placement",
    "read_images",
    "read_list",
    "sample_images",
    "sample_root",
    "subsets",
    "unlisted",
    "verify",
    "write_list",
]
