"""`xent_rs.torch` in transformers' Trainer, with a small GPT-2 of random weights."""

import math

import pytest
import xent_rs

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
pytest.importorskip("accelerate", reason="the Trainer needs accelerate, which is not installed")

import xent_rs.torch as xt  # noqa: E402

CLASSES, POSITIONS = 37, 12

# What transformers and PyTorch warn of among themselves is none of our business.
pytestmark = pytest.mark.filterwarnings("ignore")


def texts(count, seed):
    """Sequences in which each token hints at the next, some of them padded."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        tokens = torch.randint(0, CLASSES, (1,), generator=generator) + torch.arange(POSITIONS)
        labels = tokens % CLASSES
        labels[POSITIONS - number % 4 :] = -100
        found.append({"input_ids": tokens % CLASSES, "labels": labels})
    return found


def language_model():
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": POSITIONS, "vocab_size": CLASSES}
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    tokens = {"bos_token_id": 0, "eos_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **dropout, **tokens))


def trainer(folder, model, **options):
    arguments = transformers.TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=4,
        per_device_eval_batch_size=5,
        gradient_accumulation_steps=2,
        max_steps=12,
        learning_rate=0.01,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
        batch_eval_metrics="compute_metrics" in options,
    )
    return transformers.Trainer(
        model, arguments, train_dataset=texts(32, 1), eval_dataset=texts(13, 2), **options
    )


def test_the_loss_is_that_of_the_model():
    model = language_model()
    batch = {name: torch.stack([text[name] for text in texts(6, 3)]) for name in ("input_ids", "labels")}
    for tokens in (None, 50, torch.tensor(50)):
        gradients = []
        for ours in (True, False):
            model.zero_grad()
            if ours:
                loss = xt.causal_lm_loss(
                    model(batch["input_ids"]), batch["labels"], num_items_in_batch=tokens
                )
            else:
                loss = model(**batch, num_items_in_batch=tokens).loss
            loss.backward()
            gradients.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_a_training_takes_the_same_course(tmp_path):
    """With accumulated gradients of batches that hold different numbers of tokens."""
    courses = []
    for options in ({"compute_loss_func": xt.causal_lm_loss}, {}):
        training = trainer(tmp_path, language_model(), **options)
        training.train()
        courses.append([entry["loss"] for entry in training.state.log_history if "loss" in entry])
    assert len(courses[0]) == 12
    assert courses[0][-1] < 0.9 * courses[0][0]
    assert courses[0] == pytest.approx(courses[1], rel=1e-3)


def test_an_evaluation_has_the_figures_of_all_tokens(tmp_path):
    model = language_model()
    training = trainer(
        tmp_path,
        model,
        compute_loss_func=xt.causal_lm_loss,
        compute_metrics=xt.EvaluatorMetrics(top_k=(1, 5)),
    )
    data = texts(13, 2)
    with torch.no_grad():
        logits = model.eval()(torch.stack([text["input_ids"] for text in data])).logits
    labels = torch.stack([text["labels"] for text in data])
    expected = xent_rs.evaluate(logits[:, :-1], labels[:, 1:], top_k=(1, 5)).as_dict("eval_")
    for _ in range(2):
        found = training.evaluate()
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert found["eval_perplexity"] == pytest.approx(math.exp(found["eval_loss"]))
