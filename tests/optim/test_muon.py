import pytest
import torch

from harness.errors import UserError
from harness.optim.group import parameter_groups
from harness.optim.muon import MuonConfig, MuonScale, build, is_hidden

MATRIX, NORM = "model.language_model.layers.0.mlp.up_proj.weight", "model.language_model.norm.weight"
HEAD = "lm_head.weight"


def test_a_matrix_gets_an_orthogonal_update_with_the_rms_of_adamw(make_problem):
    """U V^T has singular values of 1; times 0.2 sqrt(max(rows, columns)) its rms is near 0.2 (2502.16982, 2.2)."""
    problem = make_problem(shapes={MATRIX: (64, 32)}, lr=1.0, weight_decay=0.0, dtype=torch.float32)
    before = problem.values()
    problem.train(build(MuonConfig(), problem.groups), range(1))
    update = before[MATRIX] - problem.values()[MATRIX]
    values = torch.linalg.svdvals(update) / (0.2 * 64**0.5)
    # The paper's coefficients bring singular values to between 0.5 and 1.5, not to 1.
    assert values.min() > 0.5 and values.max() < 1.5
    gradient = problem.gradients(0)[MATRIX]
    left, _, right = torch.linalg.svd(gradient, full_matrices=False)
    assert torch.cosine_similarity((left @ right).flatten(), update.flatten(), dim=0) > 0.95
    assert update.square().mean().sqrt().item() == pytest.approx(0.2, rel=0.3)


def test_each_part_steps_as_its_library_does(make_problem):
    shapes = {HEAD: (8, 4)}
    ours, theirs = make_problem(shapes=shapes, dtype=torch.float32), make_problem(shapes=shapes, dtype=torch.float32)
    ours.train(build(MuonConfig(scale=MuonScale.original), ours.groups), range(4))
    p = theirs.parameters
    muon = torch.optim.Muon([p[MATRIX]], lr=1e-2, weight_decay=0.1)
    decayed, plain = ({"params": [p[n]], "weight_decay": decay} for n, decay in ((HEAD, 0.1), (NORM, 0.0)))
    adamw = torch.optim.AdamW([decayed, plain], lr=1e-2, betas=(0.9, 0.95), fused=True)
    for step in range(4):
        for name, gradient in theirs.gradients(step).items():
            p[name].grad = gradient
        muon.step()
        adamw.step()
    for name, value in ours.values().items():
        assert torch.equal(value, p[name]), name


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.language_model.layers.3.self_attn.q_proj.weight", (8, 4), True),
        ("model.visual.merger.linear_fc1.weight", (8, 4), True),
        ("base_model.model.model.language_model.layers.3.mlp.up_proj.lora_A.default.weight", (2, 4), True),
        ("model.language_model.embed_tokens.weight", (8, 4), False),
        ("lm_head.weight", (8, 4), False),
        ("base_model.model.lm_head.lora_A.default.weight", (2, 4), False),
        ("model.visual.pos_embed.weight", (8, 4), False),
        ("model.visual.patch_embed.proj.weight", (8, 3, 2, 4, 4), False),
        ("model.language_model.layers.3.mlp.experts.gate_up_proj", (2, 8, 4), False),
        ("model.language_model.layers.3.mlp.up_proj.boft_s.default", (8, 1), False),
        ("model.language_model.norm.weight", (8,), False),
    ],
)
def test_hidden_matrices_are_its_own_and_the_rest_adamws(name, shape, expected):
    assert is_hidden(name, torch.nn.Parameter(torch.ones(shape))) == expected


def test_all_that_trains_is_in_one_part_of_the_tiny_model(make_tuned):
    model = make_tuned("tuner=full", "freeze=none").model
    optimizer = build(MuonConfig(), parameter_groups(model, MuonConfig(vit_lr=1e-5), 1e-3))
    muon, adamw = ({id(p) for g in part.param_groups for p in g["params"]} for part in optimizer.parts)
    assert not muon & adamw and muon | adamw == {id(p) for p in model.parameters()}
    hidden = [n for n, p in model.named_parameters() if id(p) in muon]
    assert len(hidden) > 50 and not any("embed" in name or "lm_head" in name for name in hidden)
    assert {g["lr"] for part in optimizer.parts for g in part.param_groups if g["component"] == "vit"} == {1e-5}


def test_nothing_for_it_to_do_is_refused(make_problem):
    problem = make_problem()
    with pytest.raises(UserError, match=r"optim=muon: no matrix inside the network trains.* use adamw"):
        build(MuonConfig(), problem.groups[1:])


def test_matrices_alone_need_no_adamw(make_problem):
    problem = make_problem(dtype=torch.float32)
    optimizer = build(MuonConfig(), problem.groups[:1])
    problem.train(optimizer, range(1))
    assert len(optimizer.parts) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, r"optim\.momentum=1\.0: must be in \[0, 1\)"),
        ({"ns_steps": 0}, r"optim\.ns_steps=0: must be 1 to 99"),
        ({"ns_steps": 100}, r"optim\.ns_steps=100"),
        ({"eps": 0.0}, r"optim\.eps=0\.0: must be above 0"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        MuonConfig(**settings)
