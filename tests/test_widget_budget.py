"""The budget view: its closed forms against real models to the digit, and its sliders."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from comet_lib.models import (
    component_counts,
    count_parameters,
    embedding_parameters,
    encoder_parameters,
    flops_per_token,
    layer_parameters,
    mebibytes,
    on_meta,
    paper_model,
    parameter_table,
    xlmr_config,
)
from comet_lib.profiles import PAPER_STUDENT, PAPER_TEACHER, PAPER_VOCABULARY, shape
from comet_lib.widgets import budget
from comet_lib.widgets.budget import ParameterBudget
from comet_lib.widgets.view import WIDGET_VIEW

# width, layers, heads, feed-forward, vocabulary, longest text
SHAPES = [(16, 2, 4, 40, 101, 20), (24, 1, 3, 24, 57, 33), (40, 5, 8, 100, 1234, 64)]


def table(model) -> dict[str, int]:
    rows = parameter_table(model).set_index("component")["parameters"]
    return {name: int(count) for name, count in rows.drop("total").items()}


@pytest.mark.parametrize(("width", "layers", "heads", "inner", "vocabulary", "longest"), SHAPES)
def test_counts_are_those_of_the_model(width, layers, heads, inner, vocabulary, longest):
    sizes = shape(width, layers, heads, inner)
    model = on_meta(xlmr_config(sizes, vocabulary, longest))
    assert component_counts(sizes, vocabulary, longest) == table(model)
    whole = encoder_parameters(vocabulary, width, layers, heads, inner, longest)
    assert whole == count_parameters(model)
    embeddings = count_parameters(model.embeddings)
    assert embedding_parameters(vocabulary, width, longest) == embeddings
    layer = count_parameters(model.encoder.layer[0])
    assert layer_parameters(width, inner, heads) == layer


@pytest.mark.parametrize(
    ("which", "sizes", "count"),
    [("teacher", PAPER_TEACHER, 559_890_432), ("student", PAPER_STUDENT, 68_937_216)],
)
def test_counts_of_the_paper(which, sizes, count):
    counts = component_counts(sizes, PAPER_VOCABULARY)
    assert counts == table(paper_model(which))
    assert sum(counts.values()) == count


@pytest.mark.parametrize(("width", "layers", "heads", "inner", "vocabulary", "longest"), SHAPES)
@pytest.mark.parametrize("length", [1, 7, 16])
def test_flops_are_those_that_torch_counts(
    width, layers, heads, inner, vocabulary, longest, length
):
    config = xlmr_config(
        shape(width, layers, heads, inner), vocabulary, longest, attn_implementation="eager"
    )
    model = on_meta(config).eval()
    ids = torch.zeros(1, length, dtype=torch.long, device="meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(input_ids=ids)
    pooler = 2 * width * width
    assert counter.get_total_flops() - pooler == length * flops_per_token(
        width, inner, layers, length
    )


def test_sizes_in_memory():
    assert round(mebibytes(68_937_216), 1) == 263.0
    assert mebibytes(2**20, "fp32") == 4 * mebibytes(2**20, "int8") == 4.0


def test_the_view_starts_at_the_paper():
    view = ParameterBudget()
    assert view.parameters == 68_937_216
    assert round(view.mib, 1) == 263.0
    assert view.sizes == PAPER_STUDENT
    assert "68,937,216 parameters, 263.0 MiB" in view.describe()
    title = view.draw().axes[0].get_title(loc="left")
    assert title == "12.3 % of the teacher's size; 92.8 % of the student is word embeddings"


@pytest.mark.parametrize(
    ("slider", "value", "changes"),
    [
        ("layers", 3, {"attention", "feed-forward"}),
        ("width", 128, {*budget.COMPONENT_COLORS}),
        ("heads", 4, set()),
        ("feed_forward", 512, {"feed-forward"}),
        ("vocabulary", 28_779, {"word embeddings"}),
    ],
)
def test_a_slider_moves_its_parts(slider, value, changes):
    view = ParameterBudget()
    before, picture = view.counts, view._image.value
    setattr(view, slider, value)
    assert view._controls[slider].value == value
    assert {name for name, count in view.counts.items() if count != before[name]} == changes
    assert (view._image.value != picture) == bool(changes)
    assert view._sentence.value == view.describe()


def test_widths_that_heads_do_not_divide_are_named():
    view = ParameterBudget()
    assert "no such model" not in view.describe()
    view.heads = 7
    assert "7 heads do not divide width 256" in view.describe()


def test_the_bars_hold_the_counts():
    view = ParameterBudget()
    both, alone = view.draw().axes
    widths = [bar.get_width() for bar in both.patches]
    counts = [*view.teacher_counts.values(), *view.counts.values()]
    assert widths == pytest.approx([count / 1e6 for count in counts])
    assert sum(bar.get_width() for bar in alone.patches) == pytest.approx(100)


def test_the_static_twin_and_another_teacher():
    view = ParameterBudget(teacher=PAPER_STUDENT)
    bundle = view._repr_mimebundle_()
    assert bundle["image/png"].startswith(b"\x89PNG")
    assert bundle[WIDGET_VIEW]["model_id"] == view.box.model_id
    assert "100.0 % of the teacher" in view.draw().axes[0].get_title(loc="left")
