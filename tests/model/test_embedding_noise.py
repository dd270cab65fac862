"""NEFTune: the noise of algorithm 1 of its paper, for each sample by its own length, on text alone."""

import itertools

import pytest
import torch

from harness.model import forward
from harness.model.forward import embedding_noise, supervised_logits

ALPHA, WIDTH = 5.0, 4096


@pytest.fixture
def model(make_tuned):
    return make_tuned("tuner=full").base.eval()


@pytest.fixture(params=["padded", "padded left", "packed"])
def batch(request, model, mixed, lay_out, padded):
    """Samples of 10, 47 and 10 tokens, two of them with images or videos."""
    return {
        "padded": lambda: padded(model, mixed),
        "padded left": lambda: padded(model, mixed, side="left"),
        "packed": lambda: lay_out(model, [mixed], length=128),
    }[request.param]()


def noise_of(batch, alpha=ALPHA):
    noise_BSD = embedding_noise(torch.zeros(*batch.input_ids.shape, WIDTH), batch, alpha)
    return noise_BSD.flatten(0, 1)


def test_each_sample_has_the_strength_of_its_own_length(batch):
    """Uniform within alpha / sqrt(L D): mean 0, variance alpha^2 / (3 L D), the bound reached and never passed."""
    noise_TD, is_text_T = noise_of(batch), torch.ones(batch.input_ids.numel(), dtype=torch.bool)
    is_text_T[batch.visual_index] = False
    starts = batch.cu_seqlens.tolist()
    lengths = set()
    for start, end in itertools.pairwise(starts):
        own = noise_TD[start:end][is_text_T[start:end]]
        bound = ALPHA / ((end - start) * WIDTH) ** 0.5
        lengths.add(end - start)
        assert 0.999 * bound < own.abs().max() <= bound * (1 + 1e-6)
        assert own.var().item() == pytest.approx(bound**2 / 3, rel=0.03)
        assert abs(own.mean().item()) < 4 * bound / (3 * own.numel()) ** 0.5
    assert len(lengths) > 2


def test_visual_tokens_get_none_at_all(batch):
    noise_TD = noise_of(batch)
    assert len(batch.visual_index) and not noise_TD[batch.visual_index].any()
    noise_TD[batch.visual_index] = 1.0
    assert noise_TD.any(dim=1).all()


def test_what_stands_at_padding_does_not_matter(model, mixed, padded):
    batch, other = padded(model, mixed), padded(model, mixed)
    other.input_ids = torch.where(other.attention_mask.bool(), other.input_ids, 7)
    results = []
    for item in (batch, other):
        torch.manual_seed(3)
        results.append(supervised_logits(model, item, noise_alpha=ALPHA))
    assert torch.equal(*results)


def test_noise_changes_the_loss_and_none_draws_nothing(model, batch):
    state = torch.get_rng_state()
    plain = supervised_logits(model, batch)
    assert torch.equal(plain, supervised_logits(model, batch, noise_alpha=0.0))
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(plain, supervised_logits(model, batch, noise_alpha=ALPHA))
    assert not torch.equal(torch.get_rng_state(), state)


def test_noise_has_the_type_of_the_embeddings(mixed, model, padded):
    batch = padded(model, mixed)
    noise_BSD = embedding_noise(torch.zeros(*batch.input_ids.shape, 8, dtype=torch.bfloat16), batch, ALPHA)
    assert noise_BSD.dtype == torch.bfloat16 and noise_BSD.any()


def test_the_mean_of_noisy_losses_is_the_plain_one(model, make_samples, padded):
    """It is noise around the embeddings, not a shift of them: small and averaged, it leaves the loss where it was."""
    batch = padded(model, make_samples("text"))
    with torch.no_grad():
        plain = forward.loss_sum(supervised_logits(model, batch), batch)
        noisy = [forward.loss_sum(supervised_logits(model, batch, noise_alpha=0.05), batch) for _ in range(30)]
    assert torch.stack(noisy).mean().item() == pytest.approx(plain.item(), rel=2e-3)
