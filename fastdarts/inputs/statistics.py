"""Published means and standard deviations of data sets' pixels, by name: the choices of --statistics."""

from fastdarts.objectives import IMAGENET_MEAN, IMAGENET_STD
from fastdarts.objectives.base import Colour
from fastdarts.registry import STATISTICS

Statistics = tuple[Colour, Colour]  # mean and standard deviation of pixels in [0, 1], RGB


def _of_bytes(mean: Colour, std: Colour) -> Statistics:
    """Return statistics that are published for pixels from 0 to 255."""
    (r, g, b), (s, t, u) = mean, std
    return (r / 255, g / 255, b / 255), (s / 255, t / 255, u / 255)


IMAGENET_PIXELS = IMAGENET_MEAN, IMAGENET_STD
CIFAR10 = (0.49139968, 0.48215827, 0.44653124), (0.24703233, 0.24348505, 0.26158768)  # DARTS' values
CIFAR100 = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)  # P-DARTS' values
STATISTICS |= {
    "auto": None,  # those of the data set for its number of classes (source.statistics_of)
    "imagenet": IMAGENET_PIXELS,
    "cifar10": CIFAR10,  # PC-DARTS and DrNAS take them for CIFAR-100, too
    "cifar100": CIFAR100,
    "r-darts-cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),  # also of DARTS- and SmoothDARTS
    "svhn": ((0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)),  # R-DARTS' values
    # D-X-Y/AutoDL-Projects, xautodl/datasets/get_dataset_with_transform.py
    "nasbench201-cifar10": _of_bytes((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)),
    "nasbench201-cifar100": _of_bytes((129.3, 124.1, 112.4), (68.2, 65.4, 70.4)),
    "nasbench201-imagenet16": _of_bytes((122.68, 116.66, 104.01), (63.22, 61.26, 65.09)),
}
