"""The table of objectives: each one is made by its name and trains; what does not fit is refused with the reason."""

import pytest
import torch

from fastdarts.objectives import (
    OBJECTIVES,
    Classification,
    Joint,
    MaskedReconstruction,
    MimDecoder,
    MultiScaleDecoder,
    Pretext,
    Reconstructing,
    SingleScaleDecoder,
    make_objective,
)
from fastdarts.ops.philox import Stream
from fastdarts.runs.memory_search import search_bytes
from fastdarts.search import SoftmaxRelaxation
from fastdarts.spaces import S0
from fastdarts.steps import meta_batch
from fastdarts.supernet import Supernet
from tests.objectives.small import STEP, batch, mixing, net

pytestmark = pytest.mark.usefixtures("one_thread")

FITTING = {"num_classes": 3, "image_size": 16, "patch_size": 4}
LABELLED = {name for name, row in OBJECTIVES.items() if row.needs_labels}


def test_registered_rows() -> None:
    """Names, labels and masks of all objectives."""
    assert {"mae", "supervised", "joint", "masked-supervised", "reconstruction", "masked-reconstruction"} < set(OBJECTIVES)
    tasks = {"rotation", "colourisation", "jigsaw"}
    assert tasks | {f"supervised+{t}" for t in tasks} < set(OBJECTIVES)
    assert {"joint"} | {name for name in OBJECTIVES if "supervised" in name} == LABELLED
    assert {n for n, row in OBJECTIVES.items() if row.masks} == {"mae", "joint", "masked-supervised", "masked-reconstruction"}
    assert all(row.description and "\n" not in row.description for row in OBJECTIVES.values())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_trains(name: str) -> None:
    """Every parameter and alpha move; labels are read where the row says so, and only there."""
    supernet = net(torch.float32)
    objective = make_objective(name, supernet, **FITTING)
    alpha, weights = mixing(torch.float32)
    b = batch()
    loss = objective(supernet, weights, b, STEP, Stream.TRAIN)
    parameters = [*supernet.parameters(), *objective.parameters(), *alpha]
    assert all(bool(g.count_nonzero()) for g in torch.autograd.grad(loss, parameters))
    row = OBJECTIVES[name]
    assert objective.needs_labels == row.needs_labels
    assert (supernet.classifier is not None) == row.needs_labels
    with torch.no_grad():
        other = objective(supernet, weights, b._replace(labels=(b.labels + 1) % 3), STEP, Stream.TRAIN)
        again = objective(supernet, weights, b, STEP, Stream.TRAIN)
    assert torch.equal(again, loss)
    assert torch.equal(other, loss) != row.needs_labels
    assert isinstance(objective, Reconstructing) == (name in ("mae", "joint", "reconstruction", "masked-reconstruction"))


@pytest.mark.parametrize("name", ["joint", "supervised+colourisation", "jigsaw"])
def test_loss_has_parameter_dtype_under_autocast(name: str) -> None:
    supernet = net(torch.float32)
    objective = make_objective(name, supernet, **FITTING)
    alpha, weights = mixing(torch.float32)
    plain = objective(supernet, weights, batch(), STEP, Stream.TRAIN)
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective(supernet, weights, batch(), STEP, Stream.TRAIN)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(plain.item(), rel=0.02)
    assert loss.item() != plain.item()
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(loss, alpha))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_memory_is_planned_on_meta_device(name: str) -> None:
    """No shape depends on data and nothing is read back: rotation's fourfold batch is seen, too."""
    with torch.device("meta"):
        supernet = Supernet(S0, C=4, layers=3)
        objective = make_objective(name, supernet, **FITTING)
    relaxation = SoftmaxRelaxation(S0, edge_normalization=False, device="meta")
    assert search_bytes(supernet, objective, relaxation, meta_batch(2, 16), "cpu") > 0


def test_settings_configure_objectives() -> None:
    def make(name: str, **settings: object):
        return make_objective(name, net(torch.float32), **FITTING | settings)

    mae = make("mae", mask_ratio=0.3, loss="l2", mask_token="learned", decoder="single-scale", seed=7)
    assert isinstance(mae, MaskedReconstruction)
    assert type(mae.decoder) is SingleScaleDecoder
    assert (mae.norm, mae.masking.ratio, mae.masking.patch_size, mae.masking.seed) == ("l2", 0.3, 4, 7)
    assert "mask_token" in dict(mae.named_parameters())
    assert type(make("mae").decoder) is MultiScaleDecoder
    joint = make("joint", mask_ratio=0.3, seed=7, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), backend="definition")
    assert isinstance(joint, Joint)
    assert isinstance(joint.decoder, MimDecoder)
    assert [layer.stride for layer in joint.decoder.enlarge] == [(2, 2), (2, 2)]
    assert joint.masking == (0.3, 4, 7, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "definition")
    assert (joint.mean, joint.std, joint.backend) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "definition")
    assert make("reconstruction").masking is None
    assert make("masked-reconstruction").masking is not None
    assert isinstance(plain := make("supervised"), Classification)
    assert plain.masking is None
    assert make("masked-supervised").masking is not None
    jigsaw = make("jigsaw", seed=7, mean=(0.1, 0.2, 0.3))
    assert isinstance(jigsaw, Pretext)
    assert (jigsaw.task.seed, jigsaw.task.mean) == (7, (0.1, 0.2, 0.3))


def test_imagenet_stem_uses_larger_decoder_strides() -> None:
    supernet = Supernet(S0, C=4, layers=3, stem="imagenet")
    joint = make_objective("joint", supernet, num_classes=3, image_size=64)
    assert [layer.stride for layer in joint.decoder.enlarge] == [(8, 8), (4, 4)]
    _, weights = mixing(torch.float32)
    with torch.no_grad():
        _, painted, _ = joint.reconstruct(supernet, weights, batch(64, count=2))
    assert painted.shape == (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("nonsense", {}, "unknown objective 'nonsense'; known are mae, supervised, joint"),
        ("mae", {"patch_size": 5}, "objective mae: patch_size 5 must divide.*16"),
        ("joint", {"patch_size": 32}, "objective joint: patch_size 32 must divide.*16"),
        ("joint", {"patch_size": 0}, "objective joint: patch_size 0"),
        ("masked-supervised", {"mask_ratio": 0.01}, "mask_ratio 0.01 hides none of an image's 16 patches"),
        ("masked-reconstruction", {"mask_ratio": 1.5}, "mask ratio must lie between 0 and 1, got 1.5"),
        ("jigsaw", {"image_size": 33}, "objective jigsaw: images of 33 pixels a side cannot be cut into 2 x 2 tiles"),
        (
            "jigsaw",
            {"image_size": 20},
            "tiles of 10 pixels a side: the network's strides require a multiple of 4, for example images of 16",
        ),
        ("rotation", {"image_size": 33}, "images of 33 pixels a side: .* multiple of 4"),
        ("mae", {"decoder": "deep"}, "unknown decoder 'deep'; known are multi-scale, single-scale"),
        *[(name, {"num_classes": None}, "it needs labels, but the images have none") for name in sorted(LABELLED)],
        *[(name, {"num_classes": 1}, "at least two classes, got 1") for name in sorted(LABELLED)],
    ],
)
def test_invalid_combinations_are_rejected(name: str, settings: dict, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make_objective(name, net(torch.float32), **FITTING | settings)


@pytest.mark.parametrize("name", sorted(set(OBJECTIVES) - LABELLED))
def test_label_free_objectives_need_no_labels(name: str) -> None:
    assert make_objective(name, net(torch.float32), **FITTING | {"num_classes": None}).needs_labels is False


@pytest.mark.parametrize("name", [n for n, row in OBJECTIVES.items() if not row.masks])
def test_patch_size_is_ignored_without_masks(name: str) -> None:
    make_objective(name, net(torch.float32), **FITTING | {"patch_size": 7, "mask_ratio": 0.0})
