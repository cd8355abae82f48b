"""Genotypes as text and JSON: round trips and invalid input."""

import json
from collections import namedtuple

import pytest

from fastdarts.spaces.genotype import Genotype, GenotypeError

# as published: quark0/darts' DARTS_V2 and PC-DARTS' ImageNet cell
DARTS_V2 = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 1), ('skip_connect', 0), ('skip_connect', 0), ('dil_conv_3x3', 2)], "
    "normal_concat=[2, 3, 4, 5], "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 1), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('max_pool_3x3', 1)], reduce_concat=[2, 3, 4, 5])"
)
PC_DARTS = (
    "Genotype(normal=[('skip_connect', 1), ('sep_conv_3x3', 0), ('sep_conv_3x3', 0), ('skip_connect', 1), "
    "('sep_conv_3x3', 1), ('sep_conv_3x3', 3), ('sep_conv_3x3', 1), ('dil_conv_5x5', 4)], normal_concat=range(2, 6), "
    "reduce=[('sep_conv_3x3', 0), ('skip_connect', 1), ('dil_conv_5x5', 2), ('max_pool_3x3', 1), "
    "('sep_conv_3x3', 2), ('sep_conv_3x3', 1), ('sep_conv_5x5', 0), ('sep_conv_3x3', 3)], reduce_concat=range(2, 6))"
)


# FairDARTS' cell g: node 3 of the normal cell has no input, and node 4 a gene that reads it
FAIR = (
    "Genotype(normal=[('sep_conv_3x3', 2, 0), ('sep_conv_3x3', 2, 1), ('skip_connect', 4, 3), ('sep_conv_5x5', 4, 1), "
    "('dil_conv_3x3', 5, 0), ('sep_conv_3x3', 5, 1)], normal_concat=range(2, 6), "
    "reduce=[('avg_pool_3x3', 2, 1), ('skip_connect', 2, 1), ('skip_connect', 2, 0), ('sep_conv_5x5', 5, 2)], "
    "reduce_concat=range(2, 6))"
)


def cell(nodes: int = 4) -> list[tuple[str, int]]:
    return [(op, state) for _ in range(nodes) for op, state in (("sep_conv_3x3", 1), ("skip_connect", 0))]


def text(**changes: str) -> str:
    fields = {
        "normal": repr(cell()),
        "normal_concat": "range(2, 6)",
        "reduce": repr(cell()),
        "reduce_concat": "range(2, 6)",
    }
    return f"Genotype({', '.join(f'{n}={v}' for n, v in (fields | changes).items())})"


def test_pc_darts_text_round_trips() -> None:
    genotype = Genotype.from_text(PC_DARTS)
    assert str(genotype) == PC_DARTS
    assert genotype.normal[5] == ("sep_conv_3x3", 3)
    assert genotype.normal_concat == (2, 3, 4, 5)
    assert genotype.operations("reduce")[:3] == ["sep_conv_3x3", "skip_connect", "dil_conv_5x5"]
    assert genotype.operations("normal").count("skip_connect") == 2


def test_equivalent_genotype_texts_are_equal() -> None:
    """Lists, tuples, ranges, positional fields."""
    darts = Genotype.from_text(DARTS_V2)
    assert str(darts) == DARTS_V2.replace("[2, 3, 4, 5]", "range(2, 6)")
    assert Genotype.from_text(str(darts)) == darts
    tuples = DARTS_V2.replace("[", "(").replace("]", ")")
    assert Genotype.from_text(f"\n  {tuples}\n") == darts
    bare = DARTS_V2
    for field in ("reduce_concat=", "normal_concat=", "normal=", "reduce="):
        bare = bare.replace(field, "")
    assert Genotype.from_text(bare) == darts


def test_other_codebases_can_evaluate_text() -> None:
    """It is evaluated there, as Python."""
    theirs = namedtuple("Genotype", "normal normal_concat reduce reduce_concat")
    read = eval(str(Genotype.from_text(DARTS_V2)), {"Genotype": theirs, "range": range})
    assert read.normal_concat == range(2, 6)
    assert read.reduce[2] == ("skip_connect", 2)
    assert Genotype.from_text(repr(read)) == Genotype.from_text(DARTS_V2)


@pytest.mark.parametrize("concat", ["[2, 3, 4, 5]", "[2, 4, 5]", "[5, 3]", "[4]", "range(3, 6)"])
def test_any_concat_is_accepted(concat: str) -> None:
    genotype = Genotype.from_text(text(normal_concat=concat))
    assert genotype.normal_concat == tuple(eval(concat))
    assert Genotype.from_text(str(genotype)) == genotype


@pytest.mark.parametrize("published", [DARTS_V2, PC_DARTS])
def test_json_round_trip(published: str) -> None:
    genotype = Genotype.from_text(published)
    written = genotype.to_json(seed=3, space="S0")
    record = json.loads(written)
    assert record["seed"] == 3
    assert record["space"] == "S0"
    assert record["text"] == str(genotype)
    assert record["normal"][0] == list(genotype.normal[0])
    assert Genotype.from_json(written) == genotype
    assert hash(Genotype.from_json(written)) == hash(genotype)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "not a genotype"),
        ("Genotype(", "not a genotype"),
        ("[1, 2]", "expected Genotype"),
        ("Cell(normal=[])", "expected Genotype"),
        ("Genotype(normal=[])", "has the fields"),
        (text(extra="1"), "has the fields"),
        (text(normal="open('x')"), "neither a literal"),
        (text(normal="[(__import__('os').getcwd(), 0)]"), "neither a literal"),
        (text(normal="[]"), "normal cell: expected two genes"),
        (text(normal=repr(cell()[:7])), "normal cell: expected two genes.*7"),
        (text(reduce="[('a', 0), ('b', 2)]"), "reduce cell: gene 1.*'b'.*state 2"),
        (text(reduce="[('a', 0), ('b', -1)]"), "reduce cell: gene 1.*state -1"),
        (text(normal="['a', 'bcd']"), "pairs"),
        (text(normal="[('a', 'b')]"), "pairs"),
        (text(normal_concat="[]"), "normal cell: concatenates"),
        (text(reduce_concat="[2, 6]"), r"reduce cell: concatenates.*0\.\.5"),
    ],
)
def test_invalid_texts_are_rejected(bad: str, message: str) -> None:
    with pytest.raises(GenotypeError, match=message):
        Genotype.from_text(bad)


@pytest.mark.parametrize("bad", ["", "{", "[]", "3", '{"normal": []}', json.dumps({"normal": 1, "reduce": 2})])
def test_invalid_json_is_rejected(bad: str) -> None:
    with pytest.raises(GenotypeError):
        Genotype.from_json(bad)


@pytest.mark.parametrize(("field", "value"), [("normal", [["a", 0], ["b", 5]]), ("reduce_concat", [9]), ("normal", [["a", 0]])])
def test_json_of_impossible_cell_is_rejected(field: str, value: list) -> None:
    record = json.loads(Genotype.from_text(PC_DARTS).to_json())
    with pytest.raises(GenotypeError, match=field.split("_")[0]):
        Genotype.from_json(json.dumps(record | {field: value}))


@pytest.mark.parametrize("concat", ["range()", "range(2, 'a')", "range(2, 6.0)", "range(0, 6, 0)", "{[]: 1}", "range(*[2, 6])"])
def test_invalid_concats_raise_genotype_error(concat: str) -> None:
    with pytest.raises(GenotypeError):
        Genotype.from_text(text(normal_concat=concat))


@pytest.mark.parametrize("gene", ["('a', 0.7)", "('a', '1')", "(3, 1)"])
def test_genes_are_name_and_integer(gene: str) -> None:
    odd = repr(cell()).replace("('sep_conv_3x3', 1)", gene, 1)
    with pytest.raises(GenotypeError):
        Genotype.from_text(text(normal=odd))


def test_fifth_positional_field_is_rejected() -> None:
    with pytest.raises(GenotypeError, match="fields"):
        Genotype.from_text(f"Genotype({cell()}, range(2, 6), {cell()}, range(2, 6), 7)")


def test_triples_round_trip() -> None:
    """Any number of genes a node, several on one edge; as text, as JSON, and as other codebases read it."""
    genotype = Genotype.from_text(FAIR)
    assert str(genotype) == FAIR and Genotype.from_json(genotype.to_json()) == genotype
    assert genotype.has_triples("normal") and genotype.operations("normal")[2] == "skip_connect"
    assert json.loads(genotype.to_json())["normal"][0] == ["sep_conv_3x3", 2, 0]
    theirs = namedtuple("Genotype", "normal normal_concat reduce reduce_concat")
    assert eval(FAIR, {"Genotype": theirs, "range": range}).normal[2] == ("skip_connect", 4, 3)


def test_nodes_without_inputs_vanish_with_their_genes() -> None:
    genotype = Genotype.from_text(FAIR)
    assert [gene[1:] for gene in genotype.genes("normal")] == [(2, 0), (2, 1), (4, 1), (5, 0), (5, 1)]
    normal, reduce = genotype.wirings().values()
    assert normal.nodes == ("0", "2", "3") and normal.concat == (2, 3, 4)
    assert [gene[1:] for gene in normal.genes] == [(0, 0), (1, 0), (1, 1), (0, 2), (1, 2)]
    assert reduce.nodes == ("0", "3") and reduce.genes[-1] == ("sep_conv_5x5", 2, 1)
    pairs = Genotype.from_text(DARTS_V2)
    assert pairs.genes("normal")[:3] == (("sep_conv_3x3", 2, 0), ("sep_conv_3x3", 2, 1), ("sep_conv_3x3", 3, 0))
    assert not pairs.has_triples("normal") and pairs.wirings()["normal"].nodes == ("0", "1", "2", "3")


def test_nested_genes_become_triples_unless_two_per_node() -> None:
    nested = "[[('sep_conv_3x3', 0)], [], [('skip_connect', 0), ('none', 2), ('noise', 2)]]"
    genotype = Genotype.from_text(text(normal=nested, normal_concat="range(2, 5)"))
    assert genotype.normal == (("sep_conv_3x3", 2, 0), ("skip_connect", 4, 0), ("none", 4, 2), ("noise", 4, 2))
    two = Genotype.from_text(text(normal="[[('a', 0), ('b', 1)], [('c', 2), ('d', 1)]]", normal_concat="[3]"))
    assert two.normal == (("a", 0), ("b", 1), ("c", 2), ("d", 1))


@pytest.mark.parametrize(
    ("genes", "concat", "message"),
    [
        ("[('a', 2, 2)]", "[2]", r"gene 0 \('a'\) reads state 2, which is not before it"),
        ("[('a', 2, -1)]", "[2]", "gene 0 .* reads state -1"),
        ("[('a', 0, 2)]", "[2]", "gene 0 .* leads to state 0: nodes are 2, 3, ..., in order"),
        ("[('a', 3, 0), ('b', 2, 0)]", "[2]", "gene 1 .* leads to state 2: nodes are 2, 3, ..., in order"),
        ("[('a', 4, 3)]", "[4]", "concatenates .4., nodes that have no inputs"),
        ("[('a', 2, 0)]", "[3]", "concatenates .3., nodes that have no inputs"),
        ("[('a', 2, 0)]", "[-1]", "concatenates .-1., but its states are 0..2"),
        ("[('a', 2, 0), ('b', 1)]", "[2]", "genes are .operation, input. pairs, or .* triples"),
        ("[('a', 2, '0')]", "[2]", "genes are .operation, input. pairs, or .* triples"),
        ("[('a', 2, 0, 1)]", "[2]", "genes are .operation, input. pairs, or .* triples"),
    ],
)
def test_invalid_triples_are_rejected(genes: str, concat: str, message: str) -> None:
    with pytest.raises(GenotypeError, match=message):
        Genotype.from_text(text(reduce=genes, reduce_concat=concat))
