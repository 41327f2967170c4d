import pytest
import torch
import transformers as tf

import geomtraj as gt
from geomtraj.integrations.transformers import loss

SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
BERT = {**SMALL, "vocab_size": 20, "max_position_embeddings": 16}
NO_TOKENS = {"bos_token_id": None, "eos_token_id": None}
GPT2 = {"n_layer": 1, "n_head": 2, "n_embd": 16, "vocab_size": 20, "n_positions": 16, "pad_token_id": 0, **NO_TOKENS}


def made(model, config, **options):
    torch.manual_seed(0)
    return model(config(**options)).eval()


def tokens(seed=0, labels=None, rows=5, columns=7, ignored=True):
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 20, (rows, columns), generator=rng)
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    batch = {"input_ids": ids, "attention_mask": mask}
    if labels is not None:
        found = torch.randint(3, labels, (rows, columns), generator=rng)
        if ignored:
            found[torch.rand((rows, columns), generator=rng) < 0.4] = -100
        batch["labels"] = found
    return batch


def classes(count, floating=False, shape=(5,), seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=rng) if floating else torch.randint(count, shape, generator=rng)


T5 = {
    "vocab_size": 20, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2,
    "dropout_rate": 0.0, "decoder_start_token_id": 0,
}  # fmt: skip
BART = {
    "vocab_size": 20, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "max_position_embeddings": 16,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None,
}  # fmt: skip
VIT = {**SMALL, "image_size": 8, "patch_size": 4, "num_labels": 4}

CASES = {
    "causal": (tf.GPT2LMHeadModel, tf.GPT2Config, GPT2, tokens(labels=20)),
    "llama": (
        tf.LlamaForCausalLM, tf.LlamaConfig, {**SMALL, "vocab_size": 20, "pad_token_id": 0, **NO_TOKENS},
        tokens(labels=20),
    ),
    "masked": (tf.BertForMaskedLM, tf.BertConfig, BERT, tokens(labels=20)),
    "seq2seq": (tf.T5ForConditionalGeneration, tf.T5Config, T5, tokens(labels=20)),
    "bart": (tf.BartForConditionalGeneration, tf.BartConfig, BART, tokens(labels=20)),
    "sequences": (
        tf.BertForSequenceClassification, tf.BertConfig, {**BERT, "num_labels": 3}, tokens() | {"labels": classes(3)},
    ),
    "regression": (
        tf.BertForSequenceClassification, tf.BertConfig, {**BERT, "num_labels": 1},
        tokens() | {"labels": classes(0, True)},
    ),
    "several numbers": (
        tf.BertForSequenceClassification, tf.BertConfig, {**BERT, "num_labels": 3, "problem_type": "regression"},
        tokens() | {"labels": classes(0, True, (5, 3))},
    ),
    "several labels": (
        tf.BertForSequenceClassification, tf.BertConfig, {**BERT, "num_labels": 3},
        tokens() | {"labels": classes(2, shape=(5, 3)).float()},
    ),
    "gpt2 sequences": (
        tf.GPT2ForSequenceClassification, tf.GPT2Config, {**GPT2, "num_labels": 3}, tokens() | {"labels": classes(3)},
    ),
    "tokens": (tf.BertForTokenClassification, tf.BertConfig, {**BERT, "num_labels": 5}, tokens(labels=5)),
    "as many tokens as classes": (
        tf.BertForTokenClassification, tf.BertConfig, {**BERT, "num_labels": 7}, tokens(labels=7),
    ),
    "images": (
        tf.ViTForImageClassification, tf.ViTConfig, VIT,
        {"pixel_values": torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(2)), "labels": classes(4)},
    ),
    "choices": (
        tf.BertForMultipleChoice, tf.BertConfig, BERT,
        {"input_ids": tokens(rows=10)["input_ids"].view(5, 2, 7), "labels": classes(2)},
    ),
    "answers": (
        tf.BertForQuestionAnswering, tf.BertConfig, BERT,
        tokens() | {"start_positions": classes(7), "end_positions": classes(7, seed=5)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_mean_is_the_models_own_to_rounding(case):
    model, config, options, batch = CASES[case]
    model = made(model, config, **options)
    before = repr(model.config)
    problem = gt.Problem(model, loss, [batch])
    assert repr(model.config) == before
    with torch.no_grad():
        own = float(model(**batch).loss)
    assert float(problem.loss()) == pytest.approx(own, rel=2e-6)
    assert problem.examples == 5
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(model(**batch).loss, parameters, allow_unused=True, materialize_grads=True)
    assert torch.allclose(problem.gradient(), torch.cat([g.flatten() for g in grads]), atol=1e-6)


def test_several_batches_are_weighted_by_their_labels():
    model = made(tf.BertForMaskedLM, tf.BertConfig, **BERT)
    batches = [tokens(seed, labels=20) for seed in range(3)]
    counts = [int((b["labels"] != -100).sum()) for b in batches]
    with torch.no_grad():
        own = [float(model(**b).loss) for b in batches]
    expected = sum(n * value for n, value in zip(counts, own, strict=True)) / sum(counts)
    problem = gt.Problem(model, loss, [tf.BatchEncoding(b) for b in batches])
    assert float(problem.loss()) == pytest.approx(expected, rel=2e-6)
    assert problem.total_weight == sum(counts)


@pytest.mark.parametrize(
    ("name", "ready"),
    [("causal", "causal_lm"), ("masked", "masked_lm"), ("seq2seq", "seq2seq_lm"), ("sequences", "classification")],
)
def test_the_ready_losses_give_the_same(name, ready):
    model, config, options, batch = CASES[name]
    model = made(model, config, **options)
    problem = gt.Problem(model, getattr(gt.losses, ready), [batch])
    with torch.no_grad():
        assert float(problem.loss()) == pytest.approx(float(model(**batch).loss), rel=2e-6)


def test_tokens_of_a_padded_batch_are_their_own_labels():
    model = made(tf.GPT2LMHeadModel, tf.GPT2Config, **GPT2)
    batch = tokens()
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with torch.no_grad():
        own = float(model(**batch, labels=labels).loss)
    assert float(gt.Problem(model, gt.losses.causal_lm, [batch]).loss()) == pytest.approx(own, rel=2e-6)


def test_a_model_with_a_term_of_its_own_is_refused_and_an_unknown_one_named():
    class WithTerm(tf.GPT2LMHeadModel):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            if output.loss is not None:
                output.loss = output.loss + 1
            return output

    with pytest.raises(gt.InputError, match="a term of its own"):
        gt.Problem(made(WithTerm, tf.GPT2Config, **GPT2), loss, [tokens(labels=20)])
    with pytest.raises(gt.InputError, match="the loss of BertForPreTraining is not known"):
        gt.Problem(made(tf.BertForPreTraining, tf.BertConfig, **BERT), loss, [tokens(labels=20)])
    with pytest.raises(gt.InputError, match="no 'labels'"):
        gt.Problem(made(tf.BertForMaskedLM, tf.BertConfig, **BERT), loss, [tokens()])
    with pytest.raises(gt.InputError, match="start_positions"):
        gt.Problem(made(tf.BertForQuestionAnswering, tf.BertConfig, **BERT), loss, [tokens()])


def test_curvature_of_a_model_is_measured():
    problem = gt.Problem(made(tf.GPT2LMHeadModel, tf.GPT2Config, **GPT2), loss, [tokens(labels=20)])
    pairs = gt.eigsh(gt.Hessian(problem), k=1, tol=1e-2)
    assert pairs.converged.all()
    assert "transformer.h.0.attn.c_attn.weight[q]" in problem.blocks
