"""The trainer learns, logs each term, keeps the best epoch and resumes exactly."""

import multiprocessing
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset
from fixed_tokenizer import fixed_tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    PreTrainedTokenizerFast,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaSelfAttention

from comet_lib.attention import capture_maps
from comet_lib.data import FEATURES
from comet_lib.errors import CometError
from comet_lib.evaluation import mean_weighted_f1, predict_probabilities
from comet_lib.loading import answer, longest_text
from comet_lib.losses import attention_kl, soft_target_loss
from comet_lib.models import (
    build_student,
    initialize_embeddings,
    only_positions,
    student_config,
    xlmr_config,
)
from comet_lib.objectives import TERMS, Objective
from comet_lib.profiles import Stage, get_profile
from comet_lib.teacher import Answers, stored_answers
from comet_lib.training import (
    Progress,
    constant_floor,
    distil_task_agnostic,
    fine_tune,
    training_arguments,
)

#: As newer versions of transformers call it, or older ones.
CHECKPOINTING = next(
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in TrainingArguments.__dataclass_fields__
)
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
TEXTS = [
    f"{a} {b} {c}" for a in "abcd" for b in ("ẹ kú", "mai", "ndi") for c in ("x y", "ọ̀rọ̀", "z")
]


@pytest.fixture(scope="module")
def tokenizer():
    return fixed_tokenizer(TEXTS, vocab_size=60)


@pytest.fixture
def config(tokenizer):
    return xlmr_config(SMALL, len(tokenizer), 64, initializer_range=0.2)


def batch_of(tokenizer, texts=TEXTS[:4]):
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    batch["labels"] = torch.full_like(batch["input_ids"], -100)
    batch["labels"][:, 2] = batch["input_ids"][:, 2]
    return batch


def test_only_positions_equals_full_logits_there(config, tokenizer):
    model = build_student(config, "masked-lm").eval()
    batch = batch_of(tokenizer)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    full = model(**inputs).logits
    chosen = batch["labels"] != -100
    with only_positions(model, chosen):
        some = model(**inputs).logits
    assert some.shape == (4, len(tokenizer))
    torch.testing.assert_close(some, full[chosen])
    assert model(**inputs).logits.shape == full.shape  # the hook is gone
    with (
        pytest.raises(CometError, match="masked-LM head"),
        only_positions(torch.nn.Linear(2, 2), chosen),
    ):
        pass


def test_stage_one_terms_are_the_losses_by_hand(config, tokenizer):
    student, teacher = (build_student(config, "masked-lm").eval() for _ in range(2))
    batch = batch_of(tokenizer)
    weights = {"soft_targets": 0.3, "attention_kl": 0.7}
    objective = Objective.live(teacher, weights, {0: 0, 1: 1}, temperature=2.0)
    with objective.on(student) as terms_of:
        terms = terms_of(student, batch)
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
    chosen = batch["labels"] != -100
    soft = soft_target_loss(
        student(**inputs).logits[chosen], teacher(**inputs).logits[chosen], temperature=2.0
    )
    maps = [capture_maps(model, inputs) for model in (student, teacher)]
    mask = batch["attention_mask"]
    attention = sum(attention_kl(maps[0][i], maps[1][i], mask) for i in (0, 1)) / 2
    torch.testing.assert_close(terms["soft_targets"], soft)
    torch.testing.assert_close(terms["attention_kl"], attention)
    torch.testing.assert_close(terms["loss"], 0.3 * soft + 0.7 * attention)
    terms["loss"].backward()
    assert all(p.grad is None for p in teacher.parameters())
    query = student.roberta.encoder.layer[0].attention.self.query.weight
    assert query.grad.abs().sum() > 0


def test_stage_two_mixes_labeled_and_unlabeled_rows(config, tokenizer):
    model = build_student(config).eval()
    batch = dict(tokenizer(TEXTS[:4], padding=True, return_tensors="pt"))
    batch["labels"] = torch.tensor([0, -100, 2, -100])

    def terms_at(batch):
        weights = {"soft_targets": 0.75, "hard_labels": 0.25}
        with Objective(stored_answers, weights, {}).on(model) as terms_of:
            return terms_of(model, batch)

    plain = terms_at(batch)
    logits = plain["logits"]
    by_hand = -(logits.log_softmax(-1)[0, 0] + logits.log_softmax(-1)[2, 2]) / 2
    torch.testing.assert_close(plain["loss"], by_hand)
    probs = torch.tensor([[0.7, 0.2, 0.1]]).repeat(4, 1)
    mixed = terms_at({**batch, "teacher_probs": probs})
    soft = (probs * (probs.log() - logits.log_softmax(-1))).sum(-1).mean()
    torch.testing.assert_close(mixed["loss"], 0.75 * soft + 0.25 * by_hand)
    batch["labels"][:] = -100
    none = terms_at({**batch, "teacher_probs": probs})
    torch.testing.assert_close(none["loss"], 0.75 * soft)


def profile_for(**stage):
    values = {"epochs": 2, "learning_rate": 5e-3, "batch_size": 8, "temperature": 2.0, "alpha": 0.5}
    made = Stage(**{**values, **stage})
    return get_profile("tiny").with_(stage1=made, stage2=made, max_length=16)


def test_the_floor_is_the_loss_of_the_best_constant():
    """The teacher's mean answer loses the floor; a constant a little away from it loses more."""
    torch.manual_seed(0)
    logits, temperature = 3 * torch.randn(12, 7), 2.0
    parts = [{"at": slice(0, 5)}, {"at": slice(5, 12)}]
    floor = constant_floor(
        lambda batch: Answers({}, {}, [], logits[batch["at"]]), parts, temperature
    )
    mean = (logits / temperature).softmax(-1).mean(0)

    def loss(constant):
        same = (temperature * constant.log()).expand(12, -1)
        return float(soft_target_loss(same, logits, temperature))

    assert floor == pytest.approx(loss(mean), rel=1e-5)
    assert floor < loss((mean + 0.01) / (mean + 0.01).sum())


def test_stage_one_brings_the_student_to_the_teacher(tokenizer, tmp_path):
    set_seed(0)
    config = xlmr_config(SMALL, len(tokenizer), 64)
    teacher, student = (build_student(config, "masked-lm") for _ in range(2))
    with torch.no_grad():  # a teacher with opinions
        for parameter in teacher.parameters():
            parameter.mul_(6.0) if parameter.ndim > 1 else None
    log = distil_task_agnostic(
        student, teacher, tokenizer, TEXTS * 4, profile_for(epochs=12), tmp_path, disable_tqdm=True
    )
    losses = [row["eval_loss"] for row in log if "eval_loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    train_rows = [row for row in log if "soft_targets" in row]
    assert train_rows and all("attention_kl" in row for row in train_rows)


@pytest.fixture(scope="module")
def bert_tokenizer():
    """Numbered as BERT's: the number of XLM-R's padding is the unknown piece's."""
    words = sorted({word for text in TEXTS for word in text.split()} - {"z"})
    pieces = {piece: n for n, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words])}
    pieces["[MASK]"] = len(pieces)
    backend = Tokenizer(models.WordLevel(pieces, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


@pytest.mark.parametrize("kind", ["bert", "distilbert", "modernbert"])
def test_a_student_has_its_teachers_numbers_of_special_pieces(kind, bert_tokenizer, tmp_path):
    set_seed(0)
    sizes = dict(SMALL, vocab_size=len(bert_tokenizer), pad_token_id=0)
    if kind == "distilbert":
        sizes |= {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
    if kind == "modernbert":
        sizes |= dict(bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3)
    teacher = build_student(AutoConfig.for_model(kind, **sizes), "masked-lm")
    profile = profile_for(epochs=1).with_(student=SMALL)
    config = student_config(profile, teacher)
    assert (config.pad_token_id, config.bos_token_id) == (0, teacher.config.bos_token_id)
    student = build_student(config, "masked-lm")
    initialize_embeddings(student, teacher)
    table = student.get_input_embeddings()
    zero = (table.weight == 0).all(1).nonzero().flatten().tolist()
    assert zero == [table.padding_idx] == [bert_tokenizer.pad_token_id] == [0]
    distil_task_agnostic(
        student, teacher, bert_tokenizer, TEXTS * 2, profile, tmp_path, disable_tqdm=True
    )
    assert longest_text(student) == 128
    assert longest_text(teacher) == teacher.config.max_position_embeddings
    student.eval()  # each token has a position of its own, [UNK] too, and padding changes nothing.
    long, batch = "a z " * 63, bert_tokenizer(["a z z", "b"], padding=True, return_tensors="pt")
    assert (bert_tokenizer(long, return_tensors="pt")["input_ids"] == 1).sum() == 63
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        maps = capture_maps(student, inputs)
        assert (maps[0][0] > 0).all() and (maps[0][1, :, 3:] == 0).all()
        one = answer(student, bert_tokenizer, ["b"], 128)
        two = answer(student, bert_tokenizer, ["b", long], 128)
    torch.testing.assert_close(one[0], two[0, :3])


def test_the_config_of_xlmrs_student_is_as_ever(config):
    teacher = build_student(config)
    student = student_config(profile_for(), teacher)
    assert student.to_json_string() == student_config(profile_for(), teacher, 1).to_json_string()
    assert (
        student.to_json_string()
        == xlmr_config(profile_for().student, config.vocab_size, 128).to_json_string()
    )
    assert (student.pad_token_id, student.max_position_embeddings) == (1, 130)


def test_with_a_cache_the_teacher_is_asked_before_the_training_alone(tokenizer, tmp_path):
    set_seed(0)
    config = xlmr_config(SMALL, len(tokenizer), 64)
    teacher, student = (build_student(config, "masked-lm") for _ in range(2))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(6.0) if parameter.ndim > 1 else None
    asked = []
    teacher.register_forward_pre_hook(lambda *_: asked.append(student.training))
    profile = profile_for(epochs=8)
    log = distil_task_agnostic(
        student,
        teacher,
        tokenizer,
        TEXTS * 4,
        profile,
        tmp_path / "run",
        cache=tmp_path / "cache",
        disable_tqdm=True,
    )
    assert len(asked) == -(-len(TEXTS) * 4 // 32)
    losses = [row["eval_loss"] for row in log if "eval_loss" in row]
    assert losses[-1] < 0.8 * losses[0]
    assert any("soft_targets" in row and "attention_kl" in row for row in log)


def test_vocabularies_must_agree(config, tokenizer, tmp_path):
    other = build_student(xlmr_config(SMALL, 99, 64), "masked-lm")
    with pytest.raises(CometError, match="one tokenizer"):
        distil_task_agnostic(
            build_student(config, "masked-lm"), other, tokenizer, TEXTS, profile_for(), tmp_path
        )


def sentiment_table(n: int = 48) -> Dataset:
    return Dataset.from_dict(
        {
            "text": [f"{('ẹ kú', 'mai', 'ndi')[i % 3]} {'xyz'[i // 3 % 3]}" for i in range(n)],
            "label": [i % 3 for i in range(n)],
            "language": ["kin" if i % 5 else "swa" for i in range(n)],
            "seen_in_train": [False] * n,
        },
        features=FEATURES,
    )


def test_stage_two_learns_and_keeps_the_best_epoch(config, tokenizer, tmp_path):
    set_seed(0)
    model, table = build_student(config), sentiment_table()
    log = fine_tune(
        model,
        tokenizer,
        table,
        table,
        profile_for(epochs=12, patience=12),
        tmp_path,
        disable_tqdm=True,
    )
    scores = [row["eval_f1_mean"] for row in log if "eval_f1_mean" in row]
    assert max(scores) > 80
    best = max((row for row in log if "eval_f1_mean" in row), key=lambda row: row["eval_f1_mean"])
    inputs = tokenizer(table["text"][:2], return_tensors="pt", padding=True)
    assert capture_maps(model, inputs)[0].dtype == torch.float32  # autocast is gone
    probabilities = predict_probabilities(model, tokenizer, table["text"][:], 16)
    by_hand = mean_weighted_f1(
        np.array(table["label"][:]), probabilities.argmax(1), np.array(table["language"][:])
    )
    for name, value in by_hand.items():  # rows stay with their language
        assert best[f"eval_f1_{name}"] == pytest.approx(value)


def test_a_short_stage_two_has_a_curve_too(config, tokenizer, tmp_path):
    model, table = build_student(config), sentiment_table()
    short = profile_for(max_steps=3)
    log = fine_tune(model, tokenizer, table, table, short, tmp_path, disable_tqdm=True)
    assert [row["step"] for row in log if "hard_labels" in row] == [1, 2, 3]


class Stop(TrainerCallback):
    """Stands in for a killed run: an exception in the middle of an epoch."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 9:
            raise KeyboardInterrupt


def run_stage_one(tokenizer, folder, **more):
    set_seed(0)
    config = xlmr_config(SMALL, len(tokenizer), 64)
    teacher, student = (build_student(config, "masked-lm") for _ in range(2))
    distil_task_agnostic(student, teacher, tokenizer, TEXTS, profile_for(epochs=3), folder, **more)
    return student


def run_stage_one_cached(tokenizer, folder, **more):
    return run_stage_one(tokenizer, folder, cache=folder.parent / "cache", **more)


def run_stage_two(tokenizer, folder, terms=None, glance=1, **more):
    set_seed(0)
    model, table = build_student(xlmr_config(SMALL, len(tokenizer), 64)), sentiment_table()
    profile = profile_for(epochs=3, terms=terms or {}, glance=glance)
    fine_tune(model, tokenizer, table, table, profile, folder, **more)
    return model


def run_with_terms(tokenizer, folder, **more):
    """Stage 2 with what is trained beside the student: a projection, and a mix of heads."""
    set_seed(1)
    sizes = {**SMALL, "hidden_size": 48, "num_hidden_layers": 4}
    teacher = build_student(xlmr_config(sizes, len(tokenizer), 64, initializer_range=0.5)).eval()
    terms = {"hidden_mse": 0.5, "attention_kl_mix": 0.5, "relations": 0.1}
    model = run_stage_two(tokenizer, folder, terms, teacher=teacher, **more)
    assert not any("comet" in name for name in model.state_dict())
    return model


def run_with_glances(tokenizer, folder, **more):
    """The same, under a live teacher that is asked about every second batch."""
    return run_with_terms(tokenizer, folder, glance=2, **more)


RUNS = [run_stage_one, run_stage_one_cached, run_stage_two, run_with_terms, run_with_glances]


@pytest.mark.parametrize("run", RUNS)
def test_an_interrupted_run_resumes_to_the_same_weights(run, tokenizer, tmp_path):
    whole = run(tokenizer, tmp_path / "whole", disable_tqdm=True)
    with pytest.raises(KeyboardInterrupt):
        run(tokenizer, tmp_path / "cut", disable_tqdm=True, callbacks=[Stop()])
    # A kill in the middle of a checkpoint leaves one without its last file.
    last = max((tmp_path / "cut").glob("checkpoint-*"), key=lambda p: int(p.name[11:]))
    (last.with_name("checkpoint-9999")).mkdir()
    (last.with_name("checkpoint-9999") / "model.safetensors").write_bytes(b"half")
    again = run(tokenizer, tmp_path / "cut", disable_tqdm=True, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_weights_of_logits_ask_no_teacher(tokenizer, tmp_path):
    """In stage 2 only terms that look inside the teacher need it."""
    run_stage_two(tokenizer, tmp_path / "run", {"soft_targets": 0.7}, disable_tqdm=True)
    assert not (tmp_path / "run" / "cache").exists()
    with pytest.raises(CometError, match="relations in stage 2 need a teacher"):
        run_stage_two(tokenizer, tmp_path / "none", {"relations": 1.0}, disable_tqdm=True)


def test_worker_processes_change_nothing(tokenizer, tmp_path):
    """Each text once a pass, with the masks of its epoch, as without workers."""
    alone, together = (
        run_stage_one(tokenizer, tmp_path / str(n), disable_tqdm=True, dataloader_num_workers=n)
        for n in (0, 2)
    )
    for name, value in alone.state_dict().items():
        assert torch.equal(value, together.state_dict()[name]), name


class StopAfter(TrainerCallback):
    """Stands in for a kill right after a checkpoint."""

    def __init__(self, saves: int) -> None:
        self.left = saves

    def on_save(self, args, state, control, **kwargs):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt


def run_with_patience(tokenizer, folder, **more):
    """The best epoch comes early, so patience decides when to stop."""
    set_seed(0)
    model, table = build_student(xlmr_config(SMALL, len(tokenizer), 64)), sentiment_table()
    profile = profile_for(epochs=9, patience=2, learning_rate=5e-2)
    log = fine_tune(model, tokenizer, table, table, profile, folder, disable_tqdm=True, **more)
    return model, [row["eval_f1_mean"] for row in log if "eval_f1_mean" in row]


def test_patience_survives_a_kill_at_any_epoch(tokenizer, tmp_path):
    whole, scores = run_with_patience(tokenizer, tmp_path / "whole")
    assert 3 <= len(scores) < 9 and scores.index(max(scores)) == len(scores) - 3
    for saves in range(1, len(scores) + 1):
        folder = tmp_path / str(saves)
        with pytest.raises(KeyboardInterrupt):
            run_with_patience(tokenizer, folder, callbacks=[StopAfter(saves)])
        again, later = run_with_patience(tokenizer, folder, resume=True)
        assert later == scores
        for name, value in whole.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), (saves, name)


@pytest.mark.parametrize("run", RUNS)
def test_gradient_checkpointing_changes_memory_alone(run, tokenizer, tmp_path):
    """The layers run again in the backward pass, with their captures, and with their dropout."""
    counts = {True: 0, False: 0}
    forward = XLMRobertaSelfAttention.forward
    weights = []
    for checkpointed in (False, True):

        def counted(*args, checkpointed=checkpointed, **kwargs):
            counts[checkpointed] += 1
            return forward(*args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(XLMRobertaSelfAttention, "forward", counted)
            folder = tmp_path / str(checkpointed)
            more = {CHECKPOINTING: checkpointed, "disable_tqdm": True, "max_steps": 4}
            trained = run(tokenizer, folder / "run", **more)
            weights.append(trained.state_dict())
            assert trained.config._attn_implementation == "sdpa"
    assert counts[True] == counts[False] + 4 * SMALL["num_hidden_layers"]  # once more a step
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


class Slowly(TrainerCallback):
    """A fifth of a second more in each step, so that a kill lands inside the training."""

    def on_step_end(self, args, state, control, **kwargs):
        time.sleep(0.2)


@pytest.mark.parametrize("run", [run_stage_one_cached, run_stage_two])
def test_a_killed_run_resumes_to_the_same_weights(run, tokenizer, tmp_path):
    whole = run(tokenizer, tmp_path / "whole", disable_tqdm=True)
    output = tmp_path / "killed" / "run"
    child = multiprocessing.get_context("fork").Process(  # it need not import torch again
        target=run,
        args=(tokenizer, output),
        kwargs={"callbacks": [Slowly()], "disable_tqdm": True},
    )
    child.start()
    while not list(output.glob("checkpoint-*/trainer_state.json")):
        assert child.is_alive(), "the child ended before it could be killed"
        time.sleep(0.01)
    time.sleep(0.3)
    child.kill()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    again = run(tokenizer, output, disable_tqdm=True, resume=True)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


@pytest.mark.parametrize("name", ["label_smoothing_factor", "train_sampling_strategy"])
def test_an_option_that_would_be_ignored_is_refused(name, tmp_path):
    with pytest.raises(CometError, match=f"{name} would have no effect"):
        training_arguments(tmp_path, Stage(1, 1e-3, 8, 2.0, 0.5), seed=0, **{name: 0.3})


def test_arguments_say_what_the_stage_says(tmp_path):
    stage = Stage(3, 1e-4, 8, 2.0, 0.5, gradient_accumulation=2)
    arguments = training_arguments(tmp_path, stage, seed=4)
    assert (arguments.num_train_epochs, arguments.learning_rate, arguments.seed) == (3, 1e-4, 4)
    assert arguments.gradient_accumulation_steps == 2
    assert not (arguments.bf16 and arguments.fp16)


class Gradients(TrainerCallback):
    """The gradient of each optimizer step, as one vector."""

    def __init__(self):
        self.steps = []

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.steps.append(torch.cat([p.grad.flatten() for p in model.parameters()]))


@pytest.mark.parametrize("rows", [64, 40])  # 40 rows: three batches where four are accumulated
@pytest.mark.parametrize("kind", ["live", "cached", "stage 2"])
def test_accumulated_batches_have_the_gradient_of_one(kind, rows, tokenizer, tmp_path):
    """Rows differ in length, in how much is masked, and in whether they have a label."""
    sizes = {**SMALL, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = xlmr_config(sizes, len(tokenizer), 64, initializer_range=0.2)
    texts = [" ".join([TEXTS[i % 36]] * (1 + i % 3)) for i in range(rows)]
    terms = dict.fromkeys(TERMS, 1.0) | {"attention_mse": 300.0}  # whose numbers are small
    if kind == "live":
        terms["hard_labels"] = 1.0
    found = []
    for batch, accumulation in ((64, 1), (16, 4)):
        stage = {"epochs": 1, "batch_size": batch, "gradient_accumulation": accumulation}
        profile, output = profile_for(**stage, terms=terms), tmp_path / str(batch)
        set_seed(0)
        head = "sentiment" if kind == "stage 2" else "masked-lm"
        teacher, student = (build_student(config, head) for _ in range(2))
        gradients = Gradients()
        more = {"callbacks": [gradients], "max_grad_norm": 0.0, "disable_tqdm": True}
        if kind == "stage 2":
            rising = [0.1 + 0.2 * (i % 4) for i in range(rows)]
            columns = {
                "text": texts,
                "label": [-100 if i % 7 < 3 else i % 3 for i in range(rows)],
                "language": ["kin"] * rows,
                "teacher_probs": [[p, 0.2, 0.8 - p] for p in rising],
            }
            table = Dataset.from_dict(columns)
            dev = table.filter(lambda row: row["label"] >= 0)
            more["teacher"] = teacher
            fine_tune(student, tokenizer, table, dev, profile, output, **more)
        else:
            more["cache"] = output / "cache" if kind == "cached" else None
            rows_and_one_held_out = [*texts, "a mai z"]
            distil_task_agnostic(
                student, teacher, tokenizer, rows_and_one_held_out, profile, output, **more
            )
        found += gradients.steps
    whole, accumulated = found
    assert (accumulated - whole).norm() < 1e-5 * whole.norm()


def test_the_bar_shows_the_stage_and_the_loss(tmp_path: Path) -> None:
    bar, state = Progress(), SimpleNamespace(is_world_process_zero=True, max_steps=9)
    bar.on_train_begin(SimpleNamespace(output_dir=str(tmp_path / "stage1")), state, None)
    bar.on_log(None, state, None, logs={"loss": 1.23456})
    bar.on_log(None, state, None, logs={"eval_loss": 7.0})
    shown = str(bar.training_bar)
    bar.training_bar.close()
    assert shown.startswith("stage1:")
    assert "loss=1.235" in shown
