"""The drawing of a cell: every name once for each edge, nothing over a name, the same bytes each time."""

import itertools
import xml.etree.ElementTree as ElementTree
from collections import Counter

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from fastdarts.report import draw_cell
from fastdarts.report.cells import cell_figure
from fastdarts.report.layout import lanes, place
from fastdarts.spaces import Architecture
from fastdarts.spaces.genotype import Genotype
from fastdarts.spaces.published import published

KINDS = ("normal", "reduce")


def texts(svg) -> list[str]:
    return ["".join(node.itertext()) for node in ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("nodes", [1, 2, 4, 7])
def test_svg_contains_names_as_text(tmp_path, random_genotype, nodes):
    genotype = random_genotype(nodes, nodes)
    for kind in KINDS:
        draw_cell(genotype, kind, tmp_path / "v1.2-cell")  # a dot in the name is no suffix
        found = Counter(texts(tmp_path / "v1.2-cell.svg"))
        wanted = Counter([*genotype.operations(kind), "c_{k-2}", "c_{k-1}", "c_{k}", *map(str, range(nodes))])
        assert {name: found[name] for name in wanted} == wanted
        assert (tmp_path / "v1.2-cell.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("seed", range(30))
def test_nothing_overlaps_names(random_genotype, seed):
    genotype = random_genotype(seed, nodes=1 + seed % 7)
    for kind in KINDS:
        figure = cell_figure(genotype, kind)
        renderer = FigureCanvasAgg(figure).get_renderer()
        axes = figure.axes[0]
        names = {t.get_gid(): t.get_window_extent(renderer) for t in axes.texts if (t.get_gid() or "").startswith("op-")}
        others = [t.get_window_extent(renderer) for t in axes.texts if t.get_gid() is None]
        others += [axes.get_legend().get_window_extent(renderer)]
        boxes = [p.get_window_extent(renderer) for p in axes.patches if (p.get_gid() or "").startswith("box-")]
        assert len(names) == len(genotype.operations(kind)) and len(boxes) == 3 + len(names) // 2
        padded = {gid: box.padded(3) for gid, box in names.items()}  # pixels: the coloured frame around a name
        for (_, one), (_, other) in itertools.combinations(padded.items(), 2):
            assert not one.overlaps(other)
        assert not any(name.overlaps(box) for name in padded.values() for box in (*boxes, *others))
        assert all(figure.bbox.x0 <= n.x0 and n.x1 <= figure.bbox.x1 for n in padded.values())


@pytest.mark.parametrize("seed", range(30))
def test_no_line_crosses_name_of_other_edge(random_genotype, seed):
    genotype = random_genotype(seed, nodes=1 + seed % 7) if seed % 5 else Architecture.from_number(521 * seed)
    layout = place(genotype.wirings()["normal"])
    lines = [(number, edge.points) for number, edge in enumerate(layout.edges)] + [(-1, p) for p in layout.concat]
    for number, edge in enumerate(layout.edges):
        (x, y), width, height = edge.label, 0.09 * len(edge.op) / 2, 0.1
        for other, points in lines:
            for (x0, y0), (x1, y1) in itertools.pairwise(points):
                hit = min(x0, x1) < x + width and max(x0, x1) > x - width
                hit &= min(y0, y1) < y + height and max(y0, y1) > y - height
                assert not hit or other == number


@pytest.mark.parametrize("name", ["FairDARTS_a", "FairDARTS_g", "several on an edge"])
def test_cells_of_any_number_of_inputs(tmp_path, name):
    """Vanished nodes are not drawn, the others keep their numbers; nothing lies over a name."""
    genes = [("skip_connect", 2, 0), ("sep_conv_3x3", 2, 0), ("max_pool_3x3", 2, 0), ("dil_conv_3x3", 5, 2), ("none", 5, 2)]
    concat = (2, 3, 4, 5)
    several = Genotype.from_fields({"normal": genes, "normal_concat": concat, "reduce": genes, "reduce_concat": concat})
    genotype = several if name.startswith("several") else published(name)
    assert genotype is not None
    for kind in KINDS:
        draw_cell(genotype, kind, tmp_path / "cell")
        found = Counter(texts(tmp_path / "cell.svg"))
        live = genotype.genes(kind)
        wanted = Counter([*(op for op, _, _ in live), *{str(node - 2) for _, node, _ in live}, "c_{k}"])
        assert {text: found[text] for text in wanted} == wanted
        figure = cell_figure(genotype, kind)
        renderer = FigureCanvasAgg(figure).get_renderer()
        names = [t.get_window_extent(renderer) for t in figure.axes[0].texts if (t.get_gid() or "").startswith("op-")]
        boxes = [p.get_window_extent(renderer) for p in figure.axes[0].patches if (p.get_gid() or "").startswith("box-")]
        assert len(names) == len(live) and len(boxes) == 3 + len({node for _, node, _ in live})
        assert not any(one.overlaps(other) for one, other in itertools.combinations(names, 2))
        assert not any(name.overlaps(box) for name in names for box in boxes)


def test_two_edges_between_the_same_states_take_different_lanes():
    genes = (("sep_conv_3x3", 0), ("skip_connect", 0), ("max_pool_3x3", 2), ("skip_connect", 2))
    chosen = lanes(Genotype(genes, (2, 3), genes, (2, 3)).wirings()["normal"])
    assert len(set(chosen[:2])) == len(set(chosen[2:])) == 2
    assert 0 in chosen[2:]  # the first one goes straight


def test_nas_bench_201_cell_is_drawn(tmp_path):
    architecture = Architecture.from_number(9876)
    draw_cell(architecture, "normal", tmp_path / "cell")
    found = Counter(texts(tmp_path / "cell.svg"))
    wanted = Counter([*architecture.ops, "input", "0", "1", "2", "c_{k}"])
    assert {name: found[name] for name in wanted} == wanted
    with pytest.raises(ValueError, match="a cell is normal, not 'reduce'"):
        draw_cell(architecture, "reduce", tmp_path / "none")


def test_output_is_bytewise_reproducible(tmp_path, random_genotype):
    for name in "ab":
        draw_cell(random_genotype(1), "normal", tmp_path / name)
    for suffix in (".svg", ".png"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_special_characters_in_names_are_escaped(tmp_path):
    names = ["<b>&\"'", "$x^2$ $", "a\nb\x07", "long_" * 20]
    genotype = Genotype.from_fields(
        {"normal": [(n, 0) for n in names], "normal_concat": [3], "reduce": [("x", 0)] * 2, "reduce_concat": [0]}
    )
    draw_cell(genotype, "normal", tmp_path / "cell")
    found = texts(tmp_path / "cell.svg")
    assert {names[0], names[1], "a b "} <= set(found)
    assert any(text.startswith("long_long_") and text.endswith("…") for text in found)


def test_unknown_kind_is_rejected(tmp_path, random_genotype):
    with pytest.raises(ValueError, match="normal or reduce"):
        draw_cell(random_genotype(0), "big", tmp_path / "cell")
