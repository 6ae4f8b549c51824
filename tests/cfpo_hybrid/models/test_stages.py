"""Which layers each pipeline stage holds, worked out by hand."""

import pytest

from cfpo_hybrid.errors import ConfigError
from cfpo_hybrid.models import PipelineCut, pipeline_layers, stage_sizes


def test_layers_are_cut_as_megatron_does():
    assert stage_sizes(8, 4) == (2, 2, 2, 2)
    assert stage_sizes(7, 3, PipelineCut(first=2, last=3)) == (2, 2, 3)
    assert stage_sizes(7, 2, PipelineCut(last=3)) == (4, 3)
    assert pipeline_layers(7, 2, PipelineCut(last=3)) == ((range(0, 4),), (range(4, 7),))
    assert pipeline_layers(5, 1) == ((range(5),),)


def test_chunks_are_dealt_in_rounds():
    # 12 layers, 3 stages of 2 + 6 + 4 in 2 chunks: each round has 1 + 3 + 2 of them.
    rounds = pipeline_layers(12, 3, PipelineCut(first=2, last=4, chunks=2))
    assert rounds == ((range(0, 1), range(6, 7)), (range(1, 4), range(7, 10)), (range(4, 6), range(10, 12)))


@pytest.mark.parametrize(
    ("num_layers", "stages", "cut"),
    [
        (7, 2, PipelineCut()),
        (4, 2, PipelineCut(first=1, last=2)),
        (4, 3, PipelineCut(first=3, last=1)),
        (2, 3, PipelineCut()),
        (4, 1, PipelineCut(first=3)),
        (4, 1, PipelineCut(chunks=2)),
    ],
)
def test_layers_that_cannot_be_cut_raise(num_layers, stages, cut):
    with pytest.raises(ConfigError):
        pipeline_layers(num_layers, stages, cut)


def test_chunks_that_do_not_divide_name_those_that_do():
    with pytest.raises(ConfigError, match=r"stages of 4, 8 layers cannot be cut into 3 chunks.*: 1, 2, 4$"):
        stage_sizes(12, 2, PipelineCut(first=4, chunks=3))


def test_advice_for_uneven_stages_is_legal():
    with pytest.raises(ConfigError, match="last=4"):
        stage_sizes(7, 2)
    assert stage_sizes(7, 2, PipelineCut(last=4)) == (3, 4)
