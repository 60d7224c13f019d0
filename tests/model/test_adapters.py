"Each kind of adapter: it learns, is saved, loads without llmft, and says the same there."
import io, json
import pytest, torch
from peft import PeftModel
from transformers import (AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig, Qwen3MoeConfig,
    Qwen3MoeForCausalLM)
from llmft.training import train, trouble
from llmft.model.adapters import add_adapter, cast_trainable_to_float32, parameter_report
from llmft.commands.cli import main
from llmft.config.config import load_config, save_config
from llmft.core import UserError
from llmft.export.merge import merge_adapter
from llmft.inference.generate import prompt_ids
from llmft.inference.load import load_run
from llmft.model.base import load_base
from llmft.tokens.special import add_tokens, load_raw_tokenizer
from llmft.training.train import finetune, make_trainer, prepare_data
from tests.marks import slow_are
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config


@pytest.fixture(scope='module')
def folder(tmp_path_factory): return tmp_path_factory.mktemp('adapters')

@pytest.fixture(scope='module')
def model(folder): return save_tiny(folder/'model', tokenizer=small_tokenizer())

@pytest.fixture(scope='module')
def rows(folder): return save_rows(folder/'rows.jsonl', alpaca_rows(40))

@pytest.fixture
def settings(model, rows, tmp_path):
    def make(**keys):
        defaults = dict(adapter='lora', bf16=False, max_steps=20, val_set_size=4, learning_rate=3e-3, lora_r=4)
        return tiny_config(model, rows, tmp_path/'run', **defaults | keys)
    return make

def losses(run): return [m['loss'] for m in run.metrics if 'loss' in m]

def quantization(config):
    if config.load_in_8bit: return BitsAndBytesConfig(load_in_8bit=True)
    if not config.load_in_4bit: return None
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4', bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=torch.float32)

def plain(run, config, model): # the trained model, by transformers and peft alone
    def load(folder, **kwargs): return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **kwargs)
    if config.adapter == 'full': return load(run.path/'model'), run.path/'model'
    base = load(model, quantization_config=quantization(config), device_map={'': 'cpu'})
    # bitsandbytes' quick form of 4-bit weights on some CPUs rounds to bfloat16, and with it DoRA is wrong
    for m in base.modules():
        if hasattr(m, 'support_avx512bf16_for_cpu'): m.support_avx512bf16_for_cpu = False
    return PeftModel.from_pretrained(base, run.path/'adapter'), run.path/'adapter'

def first_answer(model, ids): # token ids of the prompt and of what `model` says to it
    out = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False,
                         pad_token_id=0)
    return out[0].tolist()

def close(actual, expected): torch.testing.assert_close(actual, expected, atol=2e-4, rtol=1e-3)

KINDS = {
    'lora': {},
    'qlora': {'adapter': 'qlora'},
    '8-bit': {'load_in_8bit': True},
    'full': {'adapter': 'full', 'learning_rate': 1e-3},
    'rslora': {'peft_use_rslora': True},
    'dora': {'peft_use_dora': True},
    'qdora': {'adapter': 'qlora', 'peft_use_dora': True},
    'pissa': {'peft_init_lora_weights': 'pissa'},
    'pissa by iteration': {'peft_init_lora_weights': 'pissa_niter_4'},
    'olora': {'peft_init_lora_weights': 'olora'},
    'loftq': {'adapter': 'qlora', 'peft_init_lora_weights': 'loftq'},
    'lora+': {'loraplus_lr_ratio': 8},
    'ranks': {'lora_rank_pattern': {'q_proj': 2}, 'lora_alpha_pattern': {'q_proj': 8}},
    'one block': {'peft_layers_to_transform': 1},
    'head': {'lora_modules_to_save': ['lm_head']},
    'tokens': {'peft_trainable_token_indices': [5, 6]},
    'deeper': {'peft_layer_replication': [[0, 2], [1, 2]]},
}

SLOW_KINDS = {'pissa by iteration', 'olora', 'qdora', 'rslora', 'ranks', 'one block'}

@pytest.mark.parametrize('kind', slow_are(SLOW_KINDS, KINDS))
def test_each_kind_learns_and_is_the_same_elsewhere(kind, settings, model):
    config = settings(val_set_size=0, save_strategy='no', **KINDS[kind])
    run = finetune(config, say=None, force=True)
    assert len(losses(run)) == 20 and sum(losses(run)[-3:]) < sum(losses(run)[:3]) - 1
    other, folder = plain(run, config, model)
    chat, tokenizer = load_run(run.path), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([prompt_ids('Add 3 to a number', tokenizer, config.datasets[0])])
    with torch.no_grad(): close(other.eval()(ids).logits, chat.model(ids).logits)
    assert first_answer(other, ids) == first_answer(chat.model, ids)
    with torch.no_grad(): base = load_base(load_config(config, adapter='lora'))(ids).logits
    assert (other(ids).logits - base).abs().max() > .1 # something was learned


def test_parameter_report(settings):
    config = settings(adapter='qlora', lora_target_modules=['q_proj'], lora_modules_to_save=['lm_head'])
    report = {r[0]: r for r in parameter_report(add_adapter(load_base(settings(adapter='qlora')), config)).layers}
    assert report['q_proj'][1:] == (4 * (64 + 64) * 2, 2 * 64 * 64, {'NF4', 'float32'}) and report['k_proj'][1] == 0
    assert report['lm_head'][1] == report['lm_head'][2] == 1000 * 64


@pytest.mark.parametrize('keys, message', {
    'a layer': ({'lora_target_modules': ['q_prj']}, 'no layer called `q_prj`. Did you mean `q_proj`?'),
    'a pattern': ({'lora_target_modules': 'model.*xx'}, 'no layer has a name that fits'),
    'a parameter': ({'lora_target_parameters': ['mlp.gate_up.weight']}, 'lora_target_parameters'),
    'saved': ({'lora_modules_to_save': ['lm_hed']}, 'Did you mean `lm_head`?'),
    'a rank': ({'lora_rank_pattern': {'qproj': 3}}, 'Did you mean `q_proj`?'),
    'a start': ({'peft_init_lora_weights': 'pisa'}, 'Did you mean `pissa`?'),
    'pissa in 4 bits': ({'adapter': 'qlora', 'peft_init_lora_weights': 'pissa'}, 'cannot be done in 4 bits'),
    'loftq in 16': ({'peft_init_lora_weights': 'loftq'}, 'these weights have 16'),
    'dora in 8': ({'load_in_8bit': True, 'peft_use_dora': True}, 'does not work on 8-bit'),
    'no block': ({'peft_layers_to_transform': [9]}, 'The adapter does not fit this model'),
    'a setting of bitsandbytes': ({'load_in_8bit': True, 'bnb_config_kwargs': {'llm_int8_treshold': 3}},
                                  'Did you mean `llm_int8_threshold`?'),
    'a value of the model': ({'overrides_of_model_config': {'rms_norm_ep': 1}}, 'Did you mean `rms_norm_eps`?'),
    }.values(), ids=str)
def test_what_does_not_fit_is_said(keys, message, settings):
    config = settings(**keys)
    with pytest.raises(UserError) as e: add_adapter(load_base(config), config)
    assert message in str(e.value)


# -- going on with an adapter

def test_going_on_with_an_adapter(settings, tmp_path, model):
    first = finetune(settings(lora_r=2, lora_target_modules=['q_proj', 'down_proj']), say=None)
    texts = []
    config = settings(lora_model_dir=str(first.path), lora_r=8, output_dir=str(tmp_path/'second'))
    second = finetune(config, say=lambda *a: texts.append(str(a[0])))
    assert json.loads((second.path/'adapter'/'adapter_config.json').read_text())['r'] == 2
    assert second.first('eval_loss') == pytest.approx(first.last('eval_loss'), rel=1e-4)
    assert second.last('eval_loss') < first.last('eval_loss')
    assert any('`lora_r`' in text and 'replaced by what the adapter' in text for text in texts)


def test_adapter_of_another_base(settings, tmp_path, model):
    first = finetune(settings(max_steps=2), say=None)
    save_tiny(tmp_path/'other', tokenizer=small_tokenizer(), hidden_size=32)
    config = settings(base_model=str(tmp_path/'other'), lora_model_dir=str(first.path))
    with pytest.raises(UserError, match='was trained on .*model, not on .*other'):
        add_adapter(load_base(config), config)
    saved = first.path/'adapter'/'adapter_config.json'
    saved.write_text(saved.read_text().replace(str(model), str(tmp_path/'other')))
    with pytest.raises(UserError, match='belongs to another base model: size mismatch'):
        add_adapter(load_base(config), config)
    with pytest.raises(UserError, match='holds no adapter'):
        add_adapter(load_base(config), load_config(config, lora_model_dir=str(tmp_path/'other')))


# -- new tokens

def test_only_new_rows_are_trained(settings, model):
    config = settings(tokens=['<think>', '</think>'], special_tokens={'pad_token': '<pad>'}, adapter='qlora')
    run = finetune(config, say=None)
    tokenizer = AutoTokenizer.from_pretrained(run.path/'adapter')
    new = tokenizer.convert_tokens_to_ids(['<think>', '</think>'])
    saved = json.loads((run.path/'adapter'/'adapter_config.json').read_text())['trainable_token_indices']
    assert saved == {'embed_tokens': new, 'lm_head': new} and tokenizer.pad_token == '<pad>'
    assert (run.path/'adapter'/'adapter_model.safetensors').stat().st_size < 400_000 # not the whole embeddings
    assert load_run(run.path)('Add 1', max_new_tokens=4) is not None


def test_vocabulary_grows(settings):
    config = settings(tokens=[f'<t{i}>' for i in range(700)], resize_token_embeddings_to_32x=True)
    base, tokenizer = load_base(config), add_tokens(load_raw_tokenizer(config), config)
    rows = base.get_input_embeddings().weight.shape[0]
    assert rows == base.get_output_embeddings().weight.shape[0] == base.config.vocab_size
    assert rows > len(tokenizer) > 1000 and rows % 32 == 0
    again = load_base(config)
    assert torch.equal(base.get_input_embeddings().weight, again.get_input_embeddings().weight)


# -- number formats

def test_loraplus_rates(settings):
    config = settings(loraplus_lr_ratio=16, weight_decay=.1)
    trainer = make_trainer(config, add_adapter(load_base(config), config), prepare_data(config), config.output_dir)
    name_of = {id(p): name.split('.')[-3] for name, p in trainer.model.named_parameters()}
    param_groups = [group for group in trainer.create_optimizer().param_groups if group['params']]
    groups = {group['lr']: {name_of[id(p)] for p in group['params']} for group in param_groups}
    assert groups == {3e-3: {'lora_A'}, 16 * 3e-3: {'lora_B'}}


def test_float16_gradients_are_unscaled_and_skipped(settings):
    """The loss scaling of a T4, as far as a CPU has it: the adapter must be in 32 bits; an overflow leaves the weights
    alone and halves the scale."""
    config = settings()
    tuned = add_adapter(load_base(config, dtype=torch.float16), config)
    weights = [p for p in tuned.parameters() if p.requires_grad]
    def trained_formats(model): return {p.dtype for p in model.parameters() if p.requires_grad}
    assert trained_formats(tuned) == {torch.float32}
    assert {p.dtype for p in tuned.parameters() if not p.requires_grad} == {torch.float16}
    optimizer, scaler = torch.optim.SGD(weights, lr=1.), torch.amp.GradScaler('cpu', init_scale=1024.)
    def step(gradient):
        before = [p.detach().clone() for p in weights]
        for p in weights: p.grad = torch.full_like(p, gradient)
        scaler.scale(torch.zeros(()))
        scaler.unscale_(optimizer)
        scaler.step(optimizer); scaler.update()
        return [(b - p).abs().max().item() for b, p in zip(before, weights)]
    assert step(1024.) == pytest.approx([1.] * len(weights)) and scaler.get_scale() == 1024
    assert step(float('inf')) == [0.] * len(weights) and scaler.get_scale() == 512
    for p in weights: p.data, p.grad = p.data.half(), None
    for p in weights: p.grad = torch.ones_like(p)
    with pytest.raises(ValueError, match='Attempting to unscale FP16 gradients'):
        scaler.unscale_(optimizer) # why it is not left to peft or TRL
    assert trained_formats(cast_trainable_to_float32(tuned)) == {torch.float32}
    no_autocast = settings(peft_autocast_adapter_dtype=False)
    assert trained_formats(cast_trainable_to_float32(tuned, no_autocast)) == {torch.float32}


# -- stopping early, keeping the best, running out of memory

def test_early_stopping_keeps_the_best(settings):
    run = finetune(settings(learning_rate=.1, eval_steps=2, early_stopping_patience=1, max_steps=40), say=None)
    measured = {m['step']: m['eval_loss'] for m in run.metrics if 'eval_loss' in m}
    assert max(measured) < 40
    chat = load_run(run.path)
    trainer = make_trainer(run.config, chat.model, prepare_data(run.config), run.path/'x')
    assert train.compute_eval_loss(trainer) == pytest.approx(min(v for k, v in measured.items() if k), rel=1e-3)


def test_watchdog_ends_the_run(settings):
    texts = []
    config = settings(loss_watchdog_threshold=.01, loss_watchdog_patience=3)
    run = finetune(config, say=lambda *a: texts.append(str(a[0])))
    assert run.last('step') == 3 and any('loss_watchdog_threshold' in text for text in texts)


def test_smaller_batches_learn_the_same(settings, tmp_path, monkeypatch):
    "Where memory runs out, the batch of a step stays what it was."
    keys = dict(sample_packing=False, max_steps=4, val_set_size=0)
    two_by_two = dict(micro_batch_size=2, gradient_accumulation_steps=2, output_dir=str(tmp_path/'expected'))
    expected = finetune(settings(**two_by_two, **keys), say=None)
    true_loss, seen = train.chunked_cross_entropy, []
    def small_memory(model, batch, **kw):
        seen.append(len(trouble.batch_texts(batch)))
        if seen[-1] > 2 and len(seen) > 1: raise torch.OutOfMemoryError('CUDA out of memory.')
        return true_loss(model, batch, **kw)
    monkeypatch.setattr(train, 'chunked_cross_entropy', small_memory)
    run = finetune(settings(micro_batch_size=4, auto_find_batch_size=True, **keys), say=None)
    assert seen[0] == 4 and seen[-1] == 2
    assert losses(run) == pytest.approx(losses(expected), rel=1e-2)


# -- where an answer ends

def chat_row(question, answer):
    return {'messages': [{'role': 'user', 'content': question}, {'role': 'assistant', 'content': answer}]}

def test_ends_agree(settings, model, tmp_path):
    "The base model lists its padding token as an end and its template ends turns with another token than eos."
    base = AutoModelForCausalLM.from_pretrained(model)
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({'pad_token': '<pad>', 'extra_special_tokens': ['<end>']})
    tokenizer.chat_template = ('{% for m in messages %}{{ m.role }}: {{ m.content }}<end>{% endfor %}'
                               '{% if add_generation_prompt %}assistant: {% endif %}')
    base.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    base.save_pretrained(tmp_path/'base'); tokenizer.save_pretrained(tmp_path/'base')
    chats = save_rows(tmp_path/'chats.jsonl', [chat_row(f'Say {i}', str(i)) for i in range(20)])
    ends = sorted([tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids('<end>')])
    keys = dict(base_model=str(tmp_path/'base'), datasets=[{'path': chats, 'type': 'chat_template'}], max_steps=2)
    for kind, name in [('lora', 'adapter'), ('full', 'model')]:
        run = finetune(settings(adapter=kind, output_dir=str(tmp_path/kind), **keys), say=None)
        saved = GenerationConfig.from_pretrained(run.path/name)
        assert saved.eos_token_id == ends and saved.pad_token_id == tokenizer.pad_token_id
        choices = json.loads((run.path/'environment.json').read_text())['choices']
        assert any(c['what'] == 'end of an answer' and '`<end>`' in c['value'] for c in choices)
        assert '| end of an answer |' in (run.path/'settings.md').read_text()
    merged = GenerationConfig.from_pretrained(merge_adapter(tmp_path/'lora', tmp_path/'merged'))
    assert merged.eos_token_id == ends and merged.pad_token_id == tokenizer.pad_token_id
    with pytest.raises(UserError, match='no adapter to merge'): merge_adapter(tmp_path/'full', tmp_path/'other')


# -- experts

@pytest.fixture(scope='module')
def experts(folder):
    return save_tiny(folder/'experts', Qwen3MoeForCausalLM, Qwen3MoeConfig, tokenizer=small_tokenizer(),
                     moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, head_dim=16)

EXPERTS = {'lora_target_parameters': ['mlp.experts.gate_up_proj', 'mlp.experts.down_proj'], 'val_set_size': 0,
           'save_strategy': 'no'}
TARGETS = {'experts': {}, 'and layers': {'lora_target_linear': True},
           'a pattern': {'lora_target_parameters': r'.*layers\.1\.mlp\.experts\.(gate_up|down)_proj'}}

@pytest.mark.parametrize('kind', slow_are({'and layers'}, TARGETS))
def test_experts_learn_and_are_the_same_elsewhere(kind, settings, experts):
    config = settings(base_model=str(experts), **EXPERTS | TARGETS[kind])
    run = finetune(config, say=None, force=True)
    assert len(losses(run)) == 20 and sum(losses(run)[-3:]) < sum(losses(run)[:3]) - 1
    other, _ = plain(run, config, experts)
    chat, tokenizer = load_run(run.path), AutoTokenizer.from_pretrained(run.path/'adapter')
    ids = torch.tensor([prompt_ids('Add 3 to a number', tokenizer, config.datasets[0])])
    assert first_answer(other.eval(), ids) == first_answer(chat.model.eval(), ids)
    with torch.no_grad():
        close(other(ids).logits, chat.model(ids).logits)
        assert (other(ids).logits - load_base(config)(ids).logits).abs().max() > .1
    merged = load_run(merge_adapter(run.path, run.path.parent/'merged'))
    with torch.no_grad(): close(merged.model(ids).logits, other(ids).logits)


def test_report_names_the_experts(settings, experts):
    config = settings(base_model=str(experts), **EXPERTS)
    report = {r[0]: r for r in parameter_report(add_adapter(load_base(config), config)).layers}
    gate_up, down, r = 4 * 64 * 64, 4 * 64 * 32, 4 * 4 # experts x out x in; a rank of 4 for each of 4 experts
    assert report['gate_up_proj'][1:3] == (2 * r * (64 + 64), 2 * gate_up)
    assert report['down_proj'][1:3] == (2 * r * (32 + 64), 2 * down)
    assert {k for k, v in report.items() if v[1]} == {'gate_up_proj', 'down_proj'}


# -- what is said on the command line

def refused(capsys, *args): # the one message of a command
    with pytest.raises(SystemExit) as e: main([str(a) for a in args])
    err = capsys.readouterr().err
    assert e.value.code == 2 and err.count('Error: ') == 1 and 'Traceback' not in err, err
    return err[err.index('Error: ') + 7:].strip()

@pytest.mark.parametrize('command', [['plan'], ['train']], ids=lambda c: c[0])
def test_what_does_not_fit_ends_with_2(command, settings, experts, model, rows, tmp_path, capsys):
    def message_for(**keys):
        save_config(settings(**keys), tmp_path/'run.yml')
        message = refused(capsys, *command, tmp_path/'run.yml')
        assert not (tmp_path/'run').exists() and message.count('\n') == 0, message
        return message
    message = message_for(base_model=str(experts), lora_target_parameters=['mlp.experts.gate_proj'])
    assert 'Did you mean `mlp.experts.gate_up_proj`?' in message
    assert 'Did you mean `q_proj`?' in message_for(lora_target_modules=['q_prj'])
    config = settings()
    add_adapter(load_base(config), config).save_pretrained(tmp_path/'adapter')
    message = message_for(base_model=str(experts), lora_model_dir=str(tmp_path/'adapter'))
    assert 'was trained on' in message and 'Set `base_model` to that one.' in message
    other = save_tiny(tmp_path/'model', tokenizer=small_tokenizer(), hidden_size=32) # the same name, other sizes
    message = message_for(base_model=str(other), lora_model_dir=str(tmp_path/'adapter'))
    assert 'The adapter belongs to another base model: size mismatch' in message


# -- several adapters on one base

@pytest.fixture(scope='module')
def chats(folder):
    return save_rows(folder/'chats.jsonl', [chat_row(f'Say {i}', f'it is {i}') for i in range(20)])

OTHERS = {
    'layers': {'lora_target_modules': ['q_proj', 'up_proj'], 'lora_r': 2},
    'head': {'lora_modules_to_save': ['lm_head']},
    'rows': {'peft_trainable_token_indices': [5, 6, 262]},
    'dora': {'peft_use_dora': True},
    'pissa': {'peft_init_lora_weights': 'pissa'},
    'qlora': {'lora_r': 2},
}

@pytest.mark.parametrize('kind', slow_are({'layers', 'dora', 'pissa', 'head', 'rows'}, OTHERS))
def test_adapters_answer_as_each_alone(kind, settings, chats, tmp_path):
    short = dict(max_steps=6, val_set_size=0, save_strategy='no', learning_rate=1e-2,
                 adapter='qlora' if kind == 'qlora' else 'lora')
    chat_data = dict(output_dir=str(tmp_path/'two'), datasets=[{'path': chats, 'type': 'chat_template'}])
    one = finetune(settings(**short), say=None, force=True).path
    two = finetune(settings(**chat_data, **short, **OTHERS[kind]), say=None, force=True).path
    both, questions = load_run(one, also={'two': two}), ['Add 3 to a number', 'Say 4']
    alone = {'run': load_run(one), 'two': load_run(two)}
    assert both.adapters == ['base', 'run', 'two'] and both.path == one
    for name in ('run', 'two', 'run', 'base', 'two', 'run'):
        both.use(name)
        chat = alone[name if name != 'base' else 'two' if both.dataset.type == 'chat_template' else 'run']
        model = load_base(settings(**short)) if name == 'base' else chat.model
        ids = [chat.prompt_ids(q) for q in questions]
        assert [both.prompt_ids(q) for q in questions] == ids # each run's own format
        first = torch.tensor(ids[:1])
        with torch.no_grad(): torch.testing.assert_close(both.model(first).logits, model(first).logits)
        if name == 'base': continue
        assert both.generate(questions, max_new_tokens=12) == chat.generate(questions, max_new_tokens=12)
        assert both.model.generation_config.eos_token_id == chat.model.generation_config.eos_token_id
    with torch.no_grad(): one, two = (alone[name].model(first).logits for name in ('run', 'two'))
    assert (one - two).abs().max() > .1


def test_ends_are_switched_along(settings, model, tmp_path):
    "Two runs whose answers end in different tokens, which the base model has both."
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({'pad_token': '<pad>', 'extra_special_tokens': ['<end>']})
    base = save_tiny(tmp_path/'base', tokenizer=tokenizer)
    short = dict(base_model=str(base), max_steps=1, val_set_size=0, save_strategy='no')
    one = finetune(settings(**short), say=None, force=True).path
    other_end = settings(output_dir=str(tmp_path/'two'), special_tokens={'eos_token': '<end>'}, **short)
    two = finetune(other_end, say=None, force=True).path
    both, alone = load_run(one, also={'two': two}), {'run': load_run(one), 'two': load_run(two)}
    ends = {name: chat.model.generation_config.eos_token_id for name, chat in alone.items()}
    assert ends['run'] == 2 != ends['two']
    for name in ('run', 'two', 'run'):
        assert both.use(name).model.generation_config.eos_token_id == ends[name]
        assert both.tokenizer.eos_token == alone[name].tokenizer.eos_token


def test_adapters_that_do_not_share_a_base(settings, model, tmp_path):
    short = dict(max_steps=1, val_set_size=0, save_strategy='no')
    one = finetune(settings(**short), say=None, force=True).path
    def refuses(part, **keys):
        out = tmp_path/f'r{len([*tmp_path.iterdir()])}'
        path = finetune(settings(output_dir=str(out), **short, **keys), say=None, force=True).path
        chat = load_run(one)
        with pytest.raises(UserError, match=part): chat.add_run('two', path)
        assert chat.adapters == ['base', 'run'] and [*chat.model.peft_config] == ['default']
        assert chat('Add 1', max_new_tokens=2) is not None
        return path
    other = save_tiny(tmp_path/'other', tokenizer=small_tokenizer())
    refuses('was trained on .*other, not on .*model. Open it by itself', base_model=str(other))
    small = save_tiny(tmp_path/'small'/'model', tokenizer=small_tokenizer(), hidden_size=32)
    refuses('belongs to another base model: size mismatch', base_model=str(small))
    refuses('its tokenizer has other tokens than that of', tokens=['<think>'])
    refuses('repeats blocks', peft_layer_replication=[[0, 2], [1, 2]])
    whole = refuses('a whole model, not an adapter', adapter='full')
    with pytest.raises(UserError, match='no other adapter can be put on it'): load_run(whole, also={'one': one})
    with pytest.raises(UserError, match="the name 'run' is taken"): load_run(one, also={'run': one})
    with pytest.raises(UserError, match='Did you mean `two`?'): load_run(one, also={'two': one}).use('tow')


def test_experts_beside_each_other(settings, experts, tmp_path):
    "peft can only put adapters beside each other that have the same expert weights."
    def run(name, weights):
        config = settings(base_model=str(experts), output_dir=str(tmp_path/name), lora_target_parameters=[weights],
                          max_steps=4, learning_rate=1e-2, val_set_size=0, save_strategy='no', seed=len(name))
        return finetune(config, say=None, force=True).path
    one, two = run('base', 'mlp.experts.down_proj'), run('second', 'mlp.experts.down_proj')
    three = run('other', 'mlp.experts.gate_up_proj')
    both = load_run(one, also={'second': two})
    for name, path in [('second', two), ('first', one)]: # a folder called `base` has another name here
        def answers(chat): return chat.generate(['Add 3', 'Add 4'], max_new_tokens=8)
        assert answers(both.use(name)) == answers(load_run(path))
    with pytest.raises(UserError, match='other.*must target the same set of parameters'): both.add_run('other', three)


def test_chat_switches(settings, tmp_path, monkeypatch, capsys):
    short = dict(max_steps=1, val_set_size=0, save_strategy='no')
    configs = [settings(output_dir=str(tmp_path/name), **short) for name in ('one', 'two')]
    paths = [finetune(config, say=None, force=True).path for config in configs]
    monkeypatch.setattr('sys.stdin', io.StringIO('/adapters\n/use tow\n/use two\nAdd 1\n/use base\n/quit\n'))
    with pytest.raises(SystemExit) as e: main(['chat', str(paths[0]), '--also', f'two={paths[1]}'])
    out = capsys.readouterr().out
    assert not e.value.code and 'base one two' in out and 'Did you mean `two`?' in out
    assert out.index(f'as tuned in {paths[0]}') < out.index('Now you ask two') < out.index('Now you ask base')
    assert 'is not NAME=RUN' in refused(capsys, 'chat', paths[0], '--also', paths[1])
    assert 'no such folder' in refused(capsys, 'chat', paths[0], '--also', 'x=nowhere')
