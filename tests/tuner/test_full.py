def test_tied_head_trains_with_the_llm(make_tuned):
    free, frozen = make_tuned("tuner=full", "freeze=vit_aligner").base, make_tuned("tuner=full", "freeze=llm").base
    assert free.lm_head.weight is free.model.language_model.embed_tokens.weight
    assert free.lm_head.weight.requires_grad
    assert not frozen.lm_head.weight.requires_grad
