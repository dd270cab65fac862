"""The chunked loss of the head against plain cross-entropy: values and every gradient, frozen heads and others."""

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from harness import registry
from harness.model import loss
from harness.model.forward import loss_sum, supervised_logits, supervised_loss, token_losses
from harness.model.loss import head_loss, is_frozen_matrix
from harness.tuner.new_tokens import settle

registry.load()
TOKENS, WIDTH, WORDS = 23, 16, 57
KINDS = ["frozen", "trained", "bias", "hooked", "lora", "dora"]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Several chunks, of unlike size."""
    monkeypatch.setattr(loss, "CHUNK", 5)


def make_head(kind: str, dtype=torch.float32) -> nn.Module:
    head: nn.Module = nn.Linear(WIDTH, WORDS, bias=kind == "bias").requires_grad_(kind == "trained")
    if kind == "hooked":
        head.register_forward_hook(lambda _, __, out: 3 * torch.tanh(out / 3))
    if kind in ("lora", "dora"):
        config = LoraConfig(r=4, target_modules=["head"], use_dora=kind == "dora", init_lora_weights=False)
        head = inject_adapter_in_model(config, nn.ModuleDict({"head": head}))["head"]
    return head.to(dtype)


def plain(hidden, head, targets, weights):
    each = F.cross_entropy(head(hidden).float(), targets, reduction="none")
    return (each if weights is None else each * weights).sum()


def drawn(dtype=torch.float32, weighted=True):
    hidden = torch.randn(TOKENS, WIDTH, dtype=dtype, requires_grad=True)
    return hidden, torch.randint(WORDS, (TOKENS,)), torch.rand(TOKENS) if weighted else None


def gradients(summed, factor, hidden, head):
    trained = [hidden, *(p for p in head.parameters() if p.requires_grad)]
    return torch.autograd.grad(summed * factor, trained)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_every_gradient_are_those_of_cross_entropy(kind, weighted):
    head, (hidden, targets, weights) = make_head(kind), drawn(weighted=weighted)
    assert is_frozen_matrix(head) is (kind == "frozen")
    summed, each = head_loss(hidden, head, targets, weights)
    expected = plain(hidden, head, targets, weights)
    torch.testing.assert_close(summed, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(each.sum(), summed.detach())
    assert each.shape == (TOKENS,) and not each.requires_grad
    # A factor: accumulation, the mean over tokens and a gradient scaler multiply behind the loss.
    ours, theirs = gradients(summed, 3.7, hidden, head), gradients(expected, 3.7, hidden, head)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_is_as_near_to_the_truth_as_cross_entropy_is(kind):
    head, (hidden, targets, weights) = make_head(kind, torch.bfloat16), drawn(torch.bfloat16)
    exact_head, exact = make_head(kind), hidden.detach().float().requires_grad_()
    exact_head.load_state_dict({name: value.float() for name, value in head.state_dict().items()})
    truth = gradients(plain(exact, exact_head, targets, weights), 1.0, exact, exact_head)
    ours = gradients(head_loss(hidden, head, targets, weights)[0], 1.0, hidden, head)
    theirs = gradients(plain(hidden, head, targets, weights), 1.0, hidden, head)
    for our, their, true in zip(ours, theirs, truth, strict=True):
        assert our.dtype is torch.bfloat16
        # What trains adds up over the chunks in its own type.
        room = 1.5 if our.shape == hidden.shape else 3.0
        assert (our.float() - true).norm() <= room * (their.float() - true).norm()


def test_float16_keeps_the_gradient_of_what_is_hardly_probable():
    """With 152,000 words a probability is often below 6e-8, which float16 rounds to nothing."""
    head = nn.Linear(WIDTH, 4, bias=False).half().requires_grad_(False)
    head.weight.copy_(torch.eye(4, WIDTH))
    hidden = torch.zeros(1, WIDTH, dtype=torch.float16)
    hidden[0, 0] = 17.5
    hidden.requires_grad_()
    gradient = gradients(head_loss(hidden, head, torch.tensor([0]))[0], 65536.0, hidden, head)[0]
    probability = float(F.softmax(head(hidden.detach()).float(), -1)[0, 1])
    assert probability < 6e-8
    assert gradient[0, 1].item() == pytest.approx(65536 * probability, rel=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_computes_in_its_type_and_gives_gradients_in_the_type_of_the_input(kind):
    head, (hidden, targets, weights) = make_head(kind), drawn()
    with torch.autocast("cpu", torch.bfloat16):
        summed, _ = head_loss(hidden, head, targets, weights)
        expected = plain(hidden, head, targets, weights)
    exact = plain(hidden, head, targets, weights)
    assert summed.dtype is torch.float32
    assert summed.item() == pytest.approx(expected.item(), rel=1e-3) and summed.item() != exact.item()
    ours, theirs = gradients(summed, 1.0, hidden, head), gradients(expected, 1.0, hidden, head)
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype is torch.float32
        torch.testing.assert_close(our, their, atol=2e-2, rtol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_two_uses_of_a_head_add_up_in_one_backward_pass(kind):
    head, (hidden, targets, weights) = make_head(kind), drawn()
    both = head_loss(hidden, head, targets, weights)[0] + head_loss(2 * hidden, head, targets, None)[0]
    expected = plain(hidden, head, targets, weights) + plain(2 * hidden, head, targets, None)
    ours, theirs = gradients(both, 1.0, hidden, head), gradients(expected, 1.0, hidden, head)
    torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_no_logits_of_all_tokens_are_ever_there(kind):
    class Largest(TorchDispatchMode):
        rows = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for item in out if isinstance(out, tuple) else (out,):
                if (
                    isinstance(item, torch.Tensor)
                    and item.ndim == 2
                    and item.shape[1] == WORDS
                    and item.shape[0] != WIDTH
                ):
                    self.rows = max(self.rows, item.shape[0])
            return out

    head, (hidden, targets, weights) = make_head(kind), drawn()
    with Largest() as seen:
        head_loss(hidden, head, targets, weights)[0].backward()
    assert 0 < seen.rows <= loss.CHUNK


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_supervised_tokens_gives_zeros_and_not_nothing(kind):
    head = make_head(kind)
    hidden = torch.randn(0, WIDTH, requires_grad=True)
    summed, each = head_loss(hidden, head, torch.empty(0, dtype=torch.int64))
    assert summed.item() == 0 and each.shape == (0,)
    assert all(not gradient.any() for gradient in gradients(summed, 1.0, hidden, head))


def test_without_gradients_wanted_none_are_computed(monkeypatch):
    monkeypatch.setattr(loss, "chunk_loss", None)
    head, (hidden, targets, weights) = make_head("frozen"), drawn()
    with torch.inference_mode():
        summed, _ = head_loss(hidden, head, targets, weights)
    torch.testing.assert_close(summed, plain(hidden, head, targets, weights).detach())


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize(("dtype", "factor"), [(torch.float32, 1.0), (torch.bfloat16, 1.0), (torch.float16, 4096.0)])
def test_what_is_written_for_a_compiler_computes_the_same(weighted, dtype, factor):
    logits, targets = (4 * torch.randn(9, WORDS)).to(dtype), torch.randint(WORDS, (9,))
    weights = torch.rand(9) if weighted else None
    ours, theirs = (work(logits, targets, weights, factor) for work in (loss.fused_slopes, loss.plain_slopes))
    assert ours[1].dtype == dtype
    torch.testing.assert_close(ours, theirs)


def test_it_compiles_to_one_graph_for_any_number_of_tokens():
    from torch._dynamo.testing import CompileCounter

    counter = CompileCounter()
    compiled = torch.compile(loss.fused_slopes, backend=counter, fullgraph=True, dynamic=True)
    for tokens in (7, 3, 12):
        logits, targets = torch.randn(tokens, WORDS), torch.randint(WORDS, (tokens,))
        compiled(logits, targets, torch.rand(tokens), 1.0)
    assert counter.frame_count == 1


HEADS = [
    ["tuner=lora", "tuner.modules_to_save=[lm_head]", "tuner.dropout=0"],
    ["tuner=lora", 'model.new_special_tokens=["<cat>"]', "model.train_new_tokens=true", "tuner.dropout=0"],
    ["tuner=full", 'model.new_special_tokens=["<cat>"]', "model.train_new_tokens=true"],
    ["tuner=full", "freeze=llm"],
]


@pytest.mark.parametrize("overrides", [[f"tuner={name}"] for name in registry.names("tuner")] + HEADS, ids=" ".join)
def test_every_tuner_has_the_loss_and_gradients_of_whole_logits(
    make_config, load_model, outlook, make_batch, overrides
):
    config = make_config(*overrides)
    loaded = load_model(config.model)
    policy = registry.build("freeze", config.freeze, loaded.model)
    tuned = registry.build("tuner", config.tuner, loaded, policy, outlook)
    settle(tuned, loaded.new_tokens, config.model.train_new_tokens)
    tuned.model.eval()
    batch = make_batch(0, 1, 2, 3, 4)
    batch.loss_weights = torch.rand(batch.num_supervised)
    trained = [p for p in tuned.model.parameters() if p.requires_grad]

    def results(summed):
        return summed.detach(), torch.autograd.grad(summed, trained, allow_unused=True)

    ours = results(supervised_loss(tuned.base, batch))
    theirs = results(loss_sum(supervised_logits(tuned.base, batch), batch))
    torch.testing.assert_close(ours[0], theirs[0], atol=1e-5, rtol=1e-6)
    largest = max(gradient.abs().max() for gradient in theirs[1] if gradient is not None)
    for our, their in zip(ours[1], theirs[1], strict=True):
        assert (our is None) == (their is None)
        assert our is None or (our - their).abs().max() <= 1e-5 * max(largest, 1)


def test_a_frozen_head_is_fused_and_each_token_is_reported(make_tuned, make_batch, monkeypatch):
    tuned, batch, seen = make_tuned("tuner=lora"), make_batch(0, 1, 2), []
    whole = loss.chunk_loss
    monkeypatch.setattr(loss, "chunk_loss", lambda *args: seen.append(len(args[0])) or whole(*args))
    _, each = token_losses(tuned.base.eval(), batch)
    assert sum(seen) == batch.num_supervised == len(each) and max(seen) <= loss.CHUNK


@pytest.mark.gpu
def test_on_a_gpu_nothing_waits_and_little_memory_is_used(monkeypatch, no_waits):
    monkeypatch.undo()
    tokens, width, words = 4096, 2560, 151_936
    head = nn.Linear(width, words, bias=False, device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    hidden = torch.randn(tokens, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(words, (tokens,), device="cuda")
    weights = torch.rand(tokens, device="cuda")
    (expected,) = torch.autograd.grad(plain(hidden, head, targets, weights), hidden)
    # Handles of cuBLAS are made at the first use.
    head_loss(hidden, head, targets, weights)[0].backward()
    torch.testing.assert_close(hidden.grad, expected, atol=2e-2, rtol=2e-2)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with no_waits():
        head_loss(hidden, head, targets, weights)[0].backward()
    whole = tokens * words * 4
    assert torch.cuda.max_memory_allocated() - before < 0.7 * whole
