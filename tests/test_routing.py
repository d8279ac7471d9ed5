"""The routing task: what its texts hold, and what a step and the two controls do."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from comet_lib.lab import routing
from comet_lib.losses import normalize_rows
from comet_lib.profiles import PROFILES, TOY_STEPS


@pytest.fixture(scope="module")
def asked() -> routing.Texts:
    """40 texts with the answers of a teacher that knows nothing yet."""
    return routing.ask(routing.new_model(routing.TEACHER, 0), routing.draw_texts(40, 0))


def test_the_label_is_the_word_behind_the_only_marker() -> None:
    texts = routing.draw_texts(300, 5)
    low, high = routing.LENGTHS
    lengths, firsts = set(), set()
    for number, label in enumerate(texts["labels"].tolist()):
        pieces = routing.pieces(texts, number)
        at = int(texts["answer_at"][number])
        assert (pieces[0], pieces[-1], pieces.count("[here]")) == ("<s>", "</s>", 1)
        assert pieces[at - 1 : at + 1] == ["[here]", routing.WORDS[label]]
        assert set(pieces[1:-1]) <= {"[here]", *routing.WORDS}
        lengths.add(len(pieces) - 2)
        firsts.add(at)
    assert lengths == set(range(low, high + 1))
    assert firsts == set(range(2, high + 1))  # the marker may stand anywhere
    padding = texts["attention_mask"] == 0
    assert torch.equal(padding, texts["input_ids"] == routing.PAD)


def test_a_seed_decides_everything_and_disturbs_nothing() -> None:
    def everything() -> list[float]:
        texts = routing.draw_texts(60, 1)
        asked = routing.ask(routing.new_model(routing.TEACHER, 0), texts)
        student = routing.new_model(routing.STUDENT, 2)
        many = routing.batches(asked, 4, 3)
        curve = routing.train(student, many, routing.hybrid_step, 3e-3, texts, (2, 4))
        return [*curve.values(), sum(float(w.detach().sum()) for w in student.parameters())]

    before = torch.get_rng_state()
    assert everything() == everything()
    assert torch.equal(before, torch.get_rng_state())
    one, other = (routing.draw_texts(60, seed)["input_ids"] for seed in (1, 2))
    assert not torch.equal(one, other)


def test_the_other_label_is_the_most_frequent_word() -> None:
    texts = routing.draw_texts(50, 0)
    for number, label in enumerate(routing.most_frequent(texts)["labels"].tolist()):
        pieces = routing.pieces(texts, number)
        counts = [pieces.count(word) for word in routing.WORDS]
        assert counts.index(max(counts)) == label


def test_shuffled_maps_are_whole_maps_of_other_texts(asked: routing.Texts) -> None:
    maps, mask = asked["maps"], asked["attention_mask"]
    shuffled, lengths = routing.others_maps(maps, mask), mask.sum(1)
    used = []
    for number, one in enumerate(shuffled):
        (donor,) = [i for i, other in enumerate(maps) if torch.equal(one, other)]
        assert donor != number and lengths[donor] == lengths[number]
        used.append(donor)
    assert sorted(used) == list(range(len(maps)))


def test_scrambled_rows_keep_their_numbers_and_their_text(asked: routing.Texts) -> None:
    maps, mask = asked["maps"], asked["attention_mask"]
    scrambled = routing.scrambled_maps(maps, mask)
    assert torch.equal(scrambled.sort(-1).values, maps.sort(-1).values)
    assert not torch.equal(scrambled, maps)
    for layer in (0, 1):
        kept = normalize_rows(scrambled[:, layer], mask).sum(-1)
        assert torch.allclose(kept, mask.float())
        padded = scrambled[:, layer].masked_select((mask == 0)[:, None].expand(maps[:, 0].shape))
        assert padded.abs().max() == 0


def test_the_weight_on_the_answer_is_read_from_the_row_of_the_first_place() -> None:
    maps = torch.zeros(2, 3, 6, 6)
    maps[0, 1, 0, 4] = 0.5
    maps[1, 1, 0, 2] = 0.25
    maps[1, 2, 3, 2] = 1.0  # another row
    found = routing.weight_on_answer(maps, torch.tensor([4, 2]))
    assert found.tolist() == [0.0, 0.375, 0.0]


@pytest.mark.parametrize("layers", [(0,), (1,), (0, 1)])
def test_a_step_matches_the_layers_it_is_told(
    layers: tuple[int, ...], asked: routing.Texts
) -> None:
    """A weight of zero leaves a term out, and only matched layers are compared."""
    batch = next(iter(routing.batches(asked, 1, 0)))

    def loss(**weights: float) -> float:
        student = routing.new_model(routing.STUDENT, 0)
        value = routing.hybrid_step(student, batch, layers=layers, **weights)
        assert all(weight.grad is not None for weight in student.parameters())
        return float(value.detach())

    labels, with_soft = loss(soft=0, attention=0), loss(soft=1, attention=0)
    with_both, twice = loss(soft=1, attention=1), loss(soft=1, attention=2)
    assert 0 < labels < with_soft < with_both
    assert twice - with_both == pytest.approx(with_both - with_soft, rel=1e-4)
    spoilt = {**batch, "maps": batch["maps"].clone()}
    for layer in {0, 1} - set(layers):
        spoilt["maps"][:, layer] = torch.nan
    student = routing.new_model(routing.STUDENT, 0)
    without = routing.hybrid_step(student, spoilt, layers=layers).detach()
    assert float(without) == pytest.approx(with_both)


def test_training_learns_the_labels_it_is_given() -> None:
    """Four texts by heart; the accuracy is looked at where it is asked for."""
    four = routing.draw_texts(4, 0)
    step = partial(routing.hybrid_step, soft=0, attention=0)
    student = routing.new_model(routing.STUDENT, 0)
    many = routing.batches(four, 80, 0, size=8)
    curve = routing.train(student, many, step, 1e-2, four, (1, 80))
    assert list(curve) == [1, 80]
    assert curve[80] == 100.0 == routing.accuracy(student, four)


def test_every_profile_has_its_steps() -> None:
    assert TOY_STEPS.keys() == PROFILES.keys()
    assert all(steps % 6 == 0 for steps in TOY_STEPS.values())  # notebook 10 takes sixths
