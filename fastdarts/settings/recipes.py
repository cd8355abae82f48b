"""Published searches by name: settings, source and reported results.

A recipe follows the paper; unspecified settings are those of its base method (DARTS' search on CIFAR, PC-DARTS' on ImageNet,
NAS-Bench-201's own). docs/recipes.md lists our results.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fastdarts.registry import RECIPES

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Recipe:
    """Published search.

    command    command that runs it
    source     paper and table
    published  result in the paper: unless noted, the accuracy after training the found cell
    settings   settings in addition to those of `method`, itself one of them
    """

    command: Literal["search_imagenet", "search_cifar"]
    source: str
    published: str
    settings: Values = field(default_factory=dict)


def _cifar(source: str, published: str, method: str = "darts-1st", /, **settings: Any) -> Recipe:
    return Recipe("search_cifar", source, published, {"method": method} | settings)


def _imagenet(source: str, published: str, /, **settings: Any) -> Recipe:
    return Recipe("search_imagenet", source, published, {"method": "pc-darts"} | settings)


MAE = {"objective": "mae", "mask_ratio": 0.5, "patch_size": 4}
MIM = {"objective": "joint", "mask_ratio": 0.6, "patch_size": 8}  # CIFAR-100's ratio is 0.7
SUPERVISED = {"objective": "supervised"}
SELECTED = SUPERVISED | {"select": "perturbation", "select_figure": "accuracy"}
IN_NASBENCH201 = {"space": "nasbench201", "epochs": 100, "batch_size": 64}
# the benchmark's own search: SGD with Nesterov's momentum, weights before alpha
NASBENCH201 = IN_NASBENCH201 | {"nesterov": True, "weight_decay": 5e-4, "step_order": "weights-first"}
WITHOUT_TRICKS = {"skip_dropout": False, "skip_limit": 0}

_MAE_NAS, _MIM, _DARTS = "MAE-NAS", "MIM-DARTS", "DARTS (Liu et al., ICLR 2019)"
_R_DARTS = "R-DARTS (Zela et al., ICLR 2020), as table 8 of MAE-NAS has it"
_SDARTS = "SDARTS (Chen and Hsieh, ICML 2020)"
_PT = "DARTS-PT (Wang et al., ICLR 2021)"
_SGAS = "SGAS (Li et al., CVPR 2020)"
_BENCH = "NAS-Bench-201 (Dong and Yang, ICLR 2020)"
_S1_S4 = {"s1": ("2.92", "3.84"), "s2": ("2.66", "4.85"), "s3": ("2.50", "3.34"), "s4": ("2.71", "7.20")}  # test errors
_PADDING = {"rotation": 4, "colourisation": 0, "jigsaw": 0}  # UnNAS only flips CIFAR's images for the last two
_PRETEXT = {"rotation": "97.35 ± 0.12", "colourisation": "97.19 ± 0.25", "jigsaw": "96.91 ± 0.43"}

RECIPES |= {
    "mae-nas-imagenet": _imagenet(
        _MAE_NAS, "ImageNet top-1 76.11 %, 4.7 M parameters, 4.5 GPU-days", objective="mae", mask_ratio=0.5, patch_size=8
    ),
    "mae-nas-cifar10": _cifar(f"{_MAE_NAS}, table 2", "CIFAR-10 97.43 ± 0.05 %, 0.4 GPU-days", **MAE),
    **{
        f"mae-nas-{space}": _cifar(f"{_MAE_NAS}, table 8", f"CIFAR-10 test error {error} %", space=space, **MAE)
        for space, (error, _) in _S1_S4.items()
    },
    "mae-nas-nasbench201": _cifar(
        f"{_MAE_NAS}, table 5", "true CIFAR-10 test accuracy 93.77 ± 0.53 % (4 runs)", **NASBENCH201, **MAE
    ),
    "mae-nas-pc-darts": _cifar(f"{_MAE_NAS}, table 7", "CIFAR-10 97.27 %", "pc-darts", **MAE),
    "mae-nas-p-darts": _cifar(f"{_MAE_NAS}, table 6", "CIFAR-10 97.16 ± 0.14 %", "p-darts", **WITHOUT_TRICKS, **MAE),
    "mim-darts-cifar10": _cifar(f"{_MIM}, table 1", "CIFAR-10 97.54 ± 0.15 %, CIFAR-100 83.81 ± 0.44 %", **MIM),
    "mim-darts-cifar100": _cifar(
        f"{_MIM}, table 1", "CIFAR-100 83.71 ± 0.66 %, CIFAR-10 97.43 ± 0.11 %", **MIM | {"mask_ratio": 0.7}
    ),
    "mim-darts-nasbench201": _cifar(
        f"{_MIM}, table 2", "true CIFAR-10 test accuracy 94.30 ± 0.13 % (4 runs)", **IN_NASBENCH201, **MIM
    ),
    "mim-darts-masked-supervised": _cifar(
        f"{_MIM}, table 7", "CIFAR-10 97.05 ± 0.26 %", **MIM | {"objective": "masked-supervised"}
    ),
    "mim-darts-reconstruction": _cifar(f"{_MIM}, table 7", "CIFAR-10 84.09 %", **MIM | {"objective": "reconstruction"}),
    "mim-darts-masked-reconstruction": _cifar(
        f"{_MIM}, table 7", "CIFAR-10 97.18 ± 0.12 %", **MIM | {"objective": "masked-reconstruction"}
    ),
    **{
        f"supervised+{task}": _cifar(
            f"{_MIM}, table 6", f"CIFAR-10 {accuracy} %", objective=f"supervised+{task}", crop_padding=_PADDING[task]
        )
        for task, accuracy in _PRETEXT.items()
    },
    "darts-1st": _cifar(_DARTS, "CIFAR-10 97.00 ± 0.14 %", **SUPERVISED),
    "darts-2nd": _cifar(_DARTS, "CIFAR-10 97.24 ± 0.09 %", "darts-2nd", **SUPERVISED),
    **{
        f"darts-{space}": _cifar(
            _R_DARTS,
            f"CIFAR-10 test error {error} %",
            "darts-2nd",
            space=space,
            **SUPERVISED,
        )
        for space, (_, error) in _S1_S4.items()
    },
    "darts-nasbench201": _cifar(_BENCH, "true CIFAR-10 test accuracy 54.30 %", **NASBENCH201, **SUPERVISED),
    "pc-darts": _cifar("PC-DARTS (Xu et al., ICLR 2020)", "CIFAR-10 97.43 ± 0.07 %", "pc-darts", **SUPERVISED),
    "pc-darts-imagenet": _imagenet("PC-DARTS (Xu et al., ICLR 2020)", "ImageNet top-1 75.8 %", **SUPERVISED),
    "p-darts": _cifar("P-DARTS (Chen et al., ICCV 2019)", "CIFAR-10 97.50 %", "p-darts", **SUPERVISED),
    "p-darts-without-tricks": _cifar(
        f"{_MAE_NAS}, table 6", "CIFAR-10 96.48 ± 0.55 %", "p-darts", **WITHOUT_TRICKS, **SUPERVISED
    ),
    "sdarts-rs": _cifar(_SDARTS, "CIFAR-10 97.33 ± 0.03 %, 0.4 GPU-days", "sdarts-rs", space="s5", **SUPERVISED),
    "sdarts-adv": _cifar(_SDARTS, "CIFAR-10 97.39 ± 0.02 %, 1.3 GPU-days", "sdarts-adv", space="s5", **SUPERVISED),
    "darts-pt": _cifar(f"{_PT}, table 2", "CIFAR-10 97.39 ± 0.08 %, 0.8 GPU-days", space="s5", **SELECTED),
    "darts-pt-fixed-alpha": _cifar(f"{_PT}, table 4", "CIFAR-10 97.13 %", space="s5", begin=50, **SELECTED),
    "darts-pt-nasbench201": _cifar(
        f"{_PT}, table 4", "true CIFAR-10 test accuracy 88.11 %", **IN_NASBENCH201, cell_norm="running", **SELECTED
    ),
    "sdarts-rs-pt": _cifar(f"{_PT}, table 2", "CIFAR-10 97.46 ± 0.10 %", "sdarts-rs", space="s5", **SELECTED),
    "drnas-nasbench201": _cifar(
        "DrNAS (Chen et al., ICLR 2021)",
        "true CIFAR-10 test accuracy 94.36 ± 0.00 %",
        "drnas",
        **IN_NASBENCH201,
        cell_norm="running",
        **SUPERVISED,
    ),
    "drnas-cifar10": _cifar(
        "DrNAS (Chen et al., ICLR 2021)", "CIFAR-10 97.54 ± 0.03 %, 0.6 GPU-days", "drnas-progressive", space="s5", **SUPERVISED
    ),
    "sgas-1": _cifar(_SGAS, "CIFAR-10 97.34 ± 0.24 % (10 searches), 0.25 GPU-days", "sgas-1", **SUPERVISED),
    "sgas-2": _cifar(_SGAS, "CIFAR-10 97.33 ± 0.21 % (10 searches), 0.25 GPU-days", "sgas-2", **SUPERVISED),
}
