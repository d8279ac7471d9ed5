"""The bundled mini teacher, and the script that makes it: one encoder with two heads.

An XLM-R-shaped encoder with its own unigram vocabulary learns two things at once from the same
batches of AfriSenti's training tweets: to fill in masked pieces, and to tell sentiment, from
labels and from cross-fitted TF-IDF soft targets, on real and on spliced tweets. Both heads are
stored in one file, so ``AutoModelForMaskedLM`` and ``AutoModelForSequenceClassification`` both
load it. No other text is used, for the weights' licence (CC BY 4.0) to stay clear.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import UnigramTrainer
from torch import Tensor
from transformers import PreTrainedTokenizerFast, XLMRobertaForMaskedLM, set_seed
from transformers.models.xlm_roberta.modeling_xlm_roberta import XLMRobertaClassificationHead

from comet_lib import evaluation
from comet_lib.data import load_sentiment, unseen
from comet_lib.files import whole_folder, write_json
from comet_lib.losses import hybrid_loss, soft_target_loss_from_probs
from comet_lib.models import count_parameters, xlmr_config
from comet_lib.profiles import Profile, Stage
from comet_lib.recipe import claim
from comet_lib.targets import cross_fit
from comet_lib.training import (
    DistillationTrainer,
    SentimentCollator,
    last_checkpoint,
    tokenise,
    training_arguments,
)

VOCABULARY = 24_000
SIZES = {
    "hidden_size": 160,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "intermediate_size": 640,
}
STAGE = Stage(epochs=4, learning_rate=1.5e-3, batch_size=64, temperature=1.0, alpha=0.75)
SPLICES = 2.0  # spliced tweets for each real one
MLM_WEIGHT = 0.1
MASKED = 0.1  # share of pieces hidden
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]


def train_tokenizer(texts: Iterable[str], vocab_size: int = VOCABULARY) -> PreTrainedTokenizerFast:
    """A lower-casing unigram tokenizer (Kudo 2018) in XLM-R's format; tone marks are kept (NFC).

    Not the same from call to call: the trainer meets the words in a random order, and the pieces'
    scores, which order their ids, come out a little different. A teacher built again is another
    draw, not the bundled one to the bit.
    """
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.Digits(individual_digits=True),
        ]
    )
    trainer = UnigramTrainer(
        vocab_size=vocab_size, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=128,
        model_input_names=["input_ids", "attention_mask"],
    )


class TwoHeads(XLMRobertaForMaskedLM):
    """The masked-LM model, its decoder tied to the embedding, with a sentiment head beside it."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.classifier = XLMRobertaClassificationHead(config)
        self.post_init()


class BothTasks:
    """One forward over masked tweets: sentiment from <s>, masked-LM from the masked positions.

    In evaluation nothing is masked and the sentiment logits alone are given.
    """

    def __init__(self, mask_id: int, temperature: float, alpha: float, mlm_weight: float) -> None:
        self.mask_id, self.temperature = mask_id, temperature
        self.alpha, self.mlm_weight = alpha, mlm_weight

    def __call__(self, model: Any, batch: dict[str, Tensor]) -> dict[str, Any]:
        ids, labels = batch["input_ids"], batch["labels"]
        inputs, masked = ids, torch.zeros_like(ids, dtype=torch.bool)
        if model.training:
            masked = (torch.rand(ids.shape, device=ids.device) < MASKED) & (ids >= len(SPECIALS))
            inputs = ids.masked_fill(masked, self.mask_id)
        hidden = model.roberta(inputs, attention_mask=batch["attention_mask"]).last_hidden_state
        logits = model.classifier(hidden).float()
        known = labels != -100
        hard = F.cross_entropy(logits[known], labels[known]) if known.any() else logits.sum() * 0
        if not model.training:
            return {"loss": hard, "logits": logits}
        soft = soft_target_loss_from_probs(logits, batch["teacher_probs"], self.temperature)
        mlm = F.cross_entropy(model.lm_head(hidden[masked]).float(), ids[masked])
        return {
            "loss": hybrid_loss(soft, hard, self.alpha) + self.mlm_weight * mlm,
            "soft_targets": soft.detach(),
            "hard_labels": hard.detach(),
            "masked_lm": mlm.detach(),
        }


def build(profile: Profile, output: str | Path, say: Callable[[str], None] = print) -> None:
    """Train the tokenizer and the teacher on ``profile``'s AfriSenti and save them to ``output``.

    The last epoch is kept; dev (without the rows seen in train) is only reported. Weights are
    stored in fp16. Called again, it goes on from the last checkpoint.

    Raises:
        CometError: ``output`` holds a run of another seed or other data.
    """
    output = Path(output)
    claim(output, profile, write=False)
    data = load_sentiment(profile)
    claim(output, profile)
    train, dev = data["train"], unseen(data["dev"])
    texts, languages = train["text"][:], train["language"][:]
    say(f"tokenizer: {VOCABULARY:,} pieces from {len(texts):,} tweets")
    tokenizer = train_tokenizer(texts)
    say("soft targets: TF-IDF, out of fold")
    soft = cross_fit(texts, train["label"][:], languages, profile.folds, profile.seed, SPLICES)
    both = np.concatenate([soft.probabilities, soft.text_probabilities])
    table = tokenise(
        [*texts, *soft.texts],
        tokenizer,
        profile.max_length,
        labels=[*train["label"][:], *[-100] * len(soft.texts)],
        teacher_probs=both.astype(np.float32),
    )
    say(f"training on {len(table):,} tweets")
    set_seed(profile.seed)
    config = xlmr_config(SIZES, len(tokenizer), max_length=128)
    model = TwoHeads(config)
    dev_languages = np.asarray(dev["language"][:])

    def metrics(prediction: Any) -> dict[str, float]:
        guess = np.asarray(prediction.predictions).argmax(-1)
        return evaluation.mean_weighted_f1(np.asarray(prediction.label_ids), guess, dev_languages)

    trainer = DistillationTrainer(
        model=model,
        args=training_arguments(output / "work", STAGE, profile.seed, eval_strategy="epoch"),
        train_dataset=table,
        eval_dataset=tokenise(
            dev["text"][:], tokenizer, profile.max_length, labels=dev["label"][:]
        ),
        data_collator=SentimentCollator(tokenizer),
        terms_of=BothTasks(tokenizer.mask_token_id, STAGE.temperature, STAGE.alpha, MLM_WEIGHT),
        compute_metrics=metrics,
    )
    trainer.train(resume_from_checkpoint=last_checkpoint(output / "work"))
    save(model, tokenizer, output / "teacher")
    write_json(output / "log.json", trainer.state.log_history)
    say(f"{count_parameters(model):,} parameters; dev of the last epoch: {_last_dev(trainer)}")


def _last_dev(trainer: Any) -> str:
    rows = [row for row in trainer.state.log_history if "eval_mean" in row]
    return f"{rows[-1]['eval_mean']:.2f} mean weighted F1" if rows else "not measured"


def save(model: TwoHeads, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Stock XLM-R files: config.json, fp16 model.safetensors with both heads, tokenizer."""
    with whole_folder(folder) as made:
        model.half().save_pretrained(made)
        config = json.loads((made / "config.json").read_text(encoding="utf-8"))
        config["architectures"] = ["XLMRobertaForSequenceClassification"]
        write_json(made / "config.json", config)
        tokenizer.save_pretrained(made)
    model.float()
