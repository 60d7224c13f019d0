"Texts one behind the other in a line against each text alone, over the attention of many models."
import pytest, torch
from transformers import AutoConfig, AutoModelForCausalLM
from llmft.memory.dryrun import StorageTracker
from llmft.model import attention
from llmft.model.attention import keep_texts_together, take_texts_apart, text_lengths, texts_apart
from llmft.training.train import Collator

SIZES = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
             num_key_value_heads=2, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2)
KINDS = {
    'llama': {}, 'qwen2': {}, 'qwen3': {}, 'phi3': {}, 'gpt_neox': {}, 'granite': {}, 'olmo2': {}, 'cohere': {},
    'smollm3': {}, 'starcoder2': {}, 'mistral': dict(sliding_window=5), 'mixtral': dict(num_local_experts=4),
    'gemma3_text': dict(sliding_window=5, layer_types=['sliding_attention', 'full_attention'])}
LENGTHS = [9, 1, 6, 3]
LABELS = torch.arange(3, 3 + sum(LENGTHS))[None]


def make_model(kind):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | KINDS[kind])
    return AutoModelForCausalLM.from_config(config, attn_implementation='sdpa').train()


def positions(): return torch.cat([torch.arange(n) for n in LENGTHS])[None]


def loss_and_gradients(model, lengths):
    model.zero_grad()
    with texts_apart(lengths):
        scores = model(input_ids=LABELS, position_ids=positions(), use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(scores[0, :-1].float(), LABELS[0, 1:])
        loss.backward()
    return torch.cat([loss.detach()[None], *[p.grad.flatten() for p in model.parameters() if p.grad is not None]])


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_are_those_with_a_mask(kind):
    model = make_model(kind)
    with_mask = loss_and_gradients(model, None)
    assert take_texts_apart(model)
    torch.testing.assert_close(loss_and_gradients(model, LENGTHS), with_mask, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss_and_gradients(model, None), with_mask, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('reentrant', [True, False])
def test_a_layer_that_is_computed_twice_knows_the_texts(reentrant):
    model = make_model('mistral')
    take_texts_apart(model)
    expected = loss_and_gradients(model, LENGTHS)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({'use_reentrant': reentrant})
    torch.testing.assert_close(loss_and_gradients(model, LENGTHS), expected, rtol=1e-4, atol=1e-6)


def test_keys_are_repeated_for_kernels_that_cannot_share_them(monkeypatch):
    model = make_model('llama')
    take_texts_apart(model)
    expected = loss_and_gradients(model, LENGTHS)
    asked = []
    monkeypatch.setattr(attention, '_shares_keys', lambda query: asked.append(query) or False)
    torch.testing.assert_close(loss_and_gradients(model, LENGTHS), expected, rtol=1e-4, atol=1e-6)
    assert asked


def test_other_batches_keep_their_mask():
    model = make_model('llama').eval()
    ids, places = LABELS.repeat(2, 1), positions().repeat(2, 1)
    def scores(): return model(input_ids=ids, position_ids=places, use_cache=False).logits
    expected = scores()
    take_texts_apart(model)
    with texts_apart(text_lengths(places)): torch.testing.assert_close(scores(), expected)
    prompt = LABELS[:, :5]
    with texts_apart([9]): # of another batch
        torch.testing.assert_close(model(input_ids=prompt).logits, make_model('llama').eval()(input_ids=prompt).logits)


def test_writing_token_by_token_is_as_before():
    model = make_model('mistral').eval()
    def written(): return model.generate(LABELS[:, :8], max_new_tokens=8, do_sample=False, eos_token_id=None).tolist()
    expected = written()
    take_texts_apart(model)
    assert written() == expected
    keep_texts_together(model)
    assert model.config._attn_implementation == 'sdpa'


def test_the_name_of_the_attention_is_not_saved(tmp_path):
    model = make_model('llama')
    take_texts_apart(model)
    model.save_pretrained(tmp_path)
    assert 'by_text' not in (tmp_path/'config.json').read_text()


@pytest.mark.parametrize('kind,options,attention', [
    ('mamba', dict(state_size=4, num_hidden_layers=1), None), ('llama', {}, 'eager'),
    ('gemma2', dict(num_hidden_layers=1), 'eager')])
def test_models_that_cannot(kind, options, attention):
    config = AutoConfig.for_model(kind, **SIZES | options)
    model = AutoModelForCausalLM.from_config(config, **{'attn_implementation': attention} if attention else {})
    assert not take_texts_apart(model)


def test_a_model_that_does_something_else_with_its_mask_is_left_as_it_is():
    model = make_model('llama')
    layer = model.model.layers[1].self_attn
    original = layer.forward
    def forward(*args, attention_mask=None, **kwargs):
        return original(*args, attention_mask=None, **kwargs)
    layer.forward = forward
    assert not take_texts_apart(model)
    assert model.config._attn_implementation == 'sdpa'


def test_rows_in_a_line():
    rows = [{'input_ids': [5, 6, 7], 'labels': [5, 6, 7]},
            {'input_ids': [8, 9, 4, 4], 'labels': [-100, 9, 4, 4], 'seq_lengths': [2, 2]}]
    batch = Collator(0, one_line=True)(rows)
    assert batch['input_ids'].tolist() == [[5, 6, 7, 8, 9, 4, 4, 0]]
    assert batch['labels'].tolist() == [[-100, 6, 7, -100, 9, -100, 4, -100]]
    assert text_lengths(batch['position_ids']) == [3, 2, 2, 1]


def test_each_mask_of_a_window_is_made_once(monkeypatch):
    model, made, original = make_model('mistral'), [], attention._window_mask
    take_texts_apart(model)
    def make(*args):
        made.append(args[:2])
        return original(*args)
    monkeypatch.setattr(attention, '_window_mask', make)
    loss_and_gradients(model, LENGTHS)
    assert sorted(made) == [(6, 5), (9, 5)] # not for each layer, and not for texts within the window


@pytest.mark.parametrize('kind,options', [
    ('lfm2', dict(layer_types=['conv', 'full_attention'])),
    ('deepseek_v32', dict(q_lora_rank=8, kv_lora_rank=8))], ids=str)
def test_without_weights_the_same_models_are_refused(kind, options):
    config = AutoConfig.for_model(kind, **SIZES | options)
    with torch.device('meta'): model = AutoModelForCausalLM.from_config(config, attn_implementation='sdpa')
    with StorageTracker(): assert not take_texts_apart(model)
    with torch.device('meta'): model = AutoModelForCausalLM.from_config(AutoConfig.for_model('llama', **SIZES))
    with StorageTracker(): assert take_texts_apart(model)


@pytest.mark.gpu
def test_on_a_gpu_it_is_the_mask_too():
    model = make_model('mistral').cuda().to(torch.float16)
    ids, places = LABELS.cuda(), positions().cuda()
    def scores(lengths):
        with torch.no_grad(), texts_apart(lengths):
            return model(input_ids=ids, position_ids=places, use_cache=False).logits
    expected = scores(None).float()
    assert take_texts_apart(model)
    assert (scores(LENGTHS).float() - expected).norm() < .01*expected.norm()
