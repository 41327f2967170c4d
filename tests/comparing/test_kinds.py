import numpy as np
import pytest
from scipy import stats
from synthetic import groups, with_blocks

from geomtraj.comparing import contrast
from geomtraj.comparing.kinds import by_kind, kind_of


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("blocks.0.attention.qkv.weight[q]", "blocks.*.attention.qkv.weight[q]"),
        ("layers.11.mlp.3.weight", "layers.*.mlp.*.weight"),
        ("0.weight", "*.weight"),
        ("conv1.weight", "conv1.weight"),
        ("heads[12]", "heads[*]"),
        ("head", "head"),
    ],
)
def test_blocks_of_one_kind_differ_in_their_numbers(label, kind):
    assert kind_of(label) == kind


def test_the_whole_model_is_no_kind():
    assert by_kind(["a.0.w", "all", "a.1.w", "b"]) == {"a.*.w": ["a.0.w", "a.1.w"], "b": ["b"]}


def test_a_kinds_ratio_is_the_mean_over_its_blocks():
    table = contrast(groups(layers=3))
    single = {r.label: r for r in table.overall()}
    assert sum(len(k.labels) for k in table.kinds) == len(single) - 1
    for kind in table.kinds:
        assert kind.row.ratio == pytest.approx(stats.gmean([single[label].ratio for label in kind.labels]))
    p = np.array([kind.row.t_test_p for kind in table.kinds])
    assert min(k.row.holm_p for k in table.kinds) == pytest.approx(min(1.0, len(p) * p.min()))


@pytest.mark.parametrize("count", [1, 29, 200])
def test_any_number_of_blocks(count):
    table = contrast(with_blocks(count))
    assert len(table.overall()) == count and len(table.kinds) == min(count, 6)
    assert len(table.comparisons[0].blocks) == max(1, count - 1)
