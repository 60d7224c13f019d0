"Files that were written for Axolotl, and what is made of those of other programs."
import ast, json, re
from pathlib import Path

import pytest
import yaml

from llmft.commands.cli import main
from llmft.config.axolotl import (
    AXOLOTL_DATASET_KEYS, AXOLOTL_KEYS, RENAMED_KEYS, UNSUPPORTED_VALUES, find_key)
from llmft.config.config import Config, DatasetConfig, UserFormat, list_recipes, load_config, read_yaml
from llmft.config.convert import ARG_CONVERTERS, IGNORED_ARGS, RENAMED_ARGS, UNSUPPORTED_ARGS, convert
from llmft.core import UserError

FILES = Path(__file__).parents[1]/'fixtures'/'axolotl'
PACKAGE = Path(__file__).parents[2]/'llmft'


# the table

@pytest.mark.parametrize('keys, model', [(AXOLOTL_KEYS, Config), (AXOLOTL_DATASET_KEYS, DatasetConfig)],
    ids=['file', 'entry'])
def test_honoured_is_a_field(keys, model):
    same = {name for name, key in keys.items() if key.message == 'the same here'}
    assert same <= {*model.model_fields}
    for name, key in keys.items():
        assert key.status in ('honoured', 'harmless', 'unsupported')
        if key.status != 'honoured' and '*' not in name: assert name not in model.model_fields
        if key.status == 'honoured' and name not in same: # it becomes a field, or a key that is honoured itself
            targets = re.findall(r'`(\w+)`', key.message)
            known = {*model.model_fields, *keys, *DatasetConfig.model_fields}
            assert targets and all(t in known for t in targets)


def test_each_key_is_in_one_class():
    import llmft.config.axolotl as module
    groups = [module._SAME, module._TRANSLATED, module._HARMLESS, module._UNSUPPORTED]
    assert sum(map(len, groups)) == len(AXOLOTL_KEYS)
    nodes = ast.walk(ast.parse((PACKAGE/'config'/'axolotl.py').read_text()))
    calls = [n for n in nodes if isinstance(n, ast.Call) and getattr(n.func, 'id', '') == '_keys']
    texts = [ast.literal_eval(text) for call in calls for text in call.args[1].values]
    names = [name for text in texts for name in text.split()] + [*RENAMED_KEYS]
    assert len(names) == len(AXOLOTL_KEYS) + len(AXOLOTL_DATASET_KEYS) # none is written twice


def test_patterns_do_not_hide_keys():
    for name, key in AXOLOTL_KEYS.items(): assert find_key(name) is key


def test_every_field_is_read():
    "A key that is accepted and then ignored would be worse than one that is refused."
    read = {'metric_for_best_model'} # both of its values mean the same
    for path in PACKAGE.rglob('*.py'):
        if path.stem in ('axolotl', 'convert', '_modidx'): continue
        nodes = [*ast.walk(ast.parse(path.read_text(encoding='utf-8')))]
        read |= {n.attr for n in nodes if isinstance(n, ast.Attribute)} # config.NAME
        if path.stem == 'config': continue
        texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        # getattr(config, 'NAME')
        words = {w for text in texts if len(text) < 200 for w in re.findall(r'\w+', text)}
        words |= {n.arg for n in nodes if isinstance(n, ast.keyword) and n.arg} # dict(NAME='its name in peft')
        firsts = [n.values[0] for n in nodes if isinstance(n, ast.JoinedStr)]
        beginnings = {n.value for n in firsts if isinstance(n, ast.Constant) and n.value.endswith('_')}
        read |= words | {b + w for b in beginnings for w in words} # getattr(config, f'peft_{name}')
    fields = {*Config.model_fields, *DatasetConfig.model_fields, *UserFormat.model_fields}
    assert sorted(fields - read) == []


def test_optimizers_that_are_advised_exist():
    from transformers import SchedulerType
    from transformers.training_args import OptimizerNames
    for key, known in (('optimizer', OptimizerNames), ('lr_scheduler', SchedulerType)):
        names = [n.value for n in known]
        for advice in UNSUPPORTED_VALUES[key].values(): assert re.search(r'`(\w+)`', advice)[1] in names


# files

LOADED = {
    'guide': dict(adapter='qlora', lora_r=32, lora_alpha=16, lora_dropout=.05, lora_target_linear=True,
        micro_batch_size=10, num_epochs=3, learning_rate=2e-4, warmup_steps=100,
        optimizer='paged_adamw_32bit', val_set_size=.02, sequence_len=2048, sample_packing=True, bf16=True,
        gradient_checkpointing=True, lr_scheduler='cosine', eval_steps=.01, seed=42),
    '01_code_llama_qlora': dict(adapter='qlora', load_in_4bit=True, warmup_ratio=.1,
        special_tokens={'bos_token': '<s>', 'eos_token': '</s>', 'unk_token': '<unk>'}, optimizer='paged_adamw_32bit'),
    '02_llama3_instruct_lora': dict(adapter='lora', load_in_8bit=True, chat_template='llama3', sample_packing=False),
    '03_deduplicate': dict(dedup='exact', lora_modules_to_save=['embed_tokens', 'lm_head']),
    '04_falcon_lora': dict(gradient_accumulation_steps=4, micro_batch_size=2, attn_implementation='sdpa',
        sample_packing=False, trust_remote_code=True),
    '05_phi3': dict(early_stopping_patience=3, eval_steps=1000, save_steps=5000, adam_beta2=.95, adam_epsilon=1e-5,
        resize_token_embeddings_to_32x=True),
    '06_pythia_lora': dict(lora_fan_in_fan_out=True, lora_target_modules=['query_key_value'], lora_target_linear=False,
        sample_packing=False, lr_scheduler='cosine'),
    '07_llama2_fsdp': dict(fsdp=['full_shard', 'auto_wrap'], sequence_len=512,
        gradient_checkpointing_kwargs={'use_reentrant': True}),
    '08_mixtral': dict(overrides_of_model_config={'output_router_logits': True},
        deepspeed='deepspeed_configs/zero2.json', loss_watchdog_threshold=5, loss_watchdog_patience=3),
    '09_kimi_linear': dict(attn_implementation='flash_attention_2', group_by_length=False, loss_watchdog_threshold=5),
    '10_gemma3': dict(adapter='qlora'),
    '11_gpt_oss': dict(adapter='lora', model_kwargs={'quantization_config': {
        'quant_method': 'mxfp4', 'dequantize': True}}),
    '12_gemma4_moe': dict(adapter='qlora', quantize_moe_experts=True),
}
REFUSED = {'gptq': True, 'relora_steps': 3, 'nvfp4_merge_aware': True, 'rl': 'dpo'}


def test_each_file_has_its_verdict():
    assert {p.stem for p in FILES.glob('*.yml')} == {*LOADED}


@pytest.mark.parametrize('name', LOADED)
def test_loads(name):
    config = load_config(FILES/f'{name}.yml')
    assert {key: getattr(config, key) for key in LOADED[name]} == LOADED[name]
    values, _ = read_yaml((FILES/f'{name}.yml').read_text())
    for key, value in values.items(): # every key is accounted for
        status = find_key(key).status
        notes = [n for n in config.notes if f'`{key}`' in n or f'`{key}:' in n]
        if value is None: assert not notes or key == 'adapter'
        elif status == 'harmless': assert len(notes) == 1 and 'is left out: ' in notes[0]
        elif status == 'unsupported':
            assert len(notes) == 1 if key == 'unfrozen_parameters' else value in (False, 0, '', []) and not notes
        elif key in Config.model_fields and not notes and not isinstance(value, list):
            assert getattr(config, key) == value


@pytest.mark.parametrize('key', REFUSED)
def test_refused(key, tmp_path):
    text = (FILES/'guide.yml').read_text()
    (tmp_path/'a.yml').write_text(text + f'{key}: {REFUSED[key]}\n')
    with pytest.raises(UserError) as e: load_config(tmp_path/'a.yml')
    line = text.count('\n') + 1
    assert str(e.value) == f'{tmp_path}/a.yml:{line}: `{key}` is not supported. {find_key(key).message}'


def test_recipes_are_no_files_of_axolotl():
    for name in list_recipes(): assert load_config(name).notes == []


# differences

BASE = {'base_model': 'me/model', 'datasets': [{'path': 'a.jsonl', 'type': 'alpaca'}], 'adapter': 'lora',
    'sequence_len': 512}

SIZE = {'lora_r': 16, 'lora_alpha': 16, 'lora_target_linear': True}

def load(**values): return load_config(BASE | SIZE | values)

def refuse(**values):
    with pytest.raises(UserError) as e: load(**values)
    return str(e.value)


@pytest.mark.parametrize('name',
    [name for name, key in AXOLOTL_KEYS.items()
        if key.status == 'unsupported' and '*' not in name and name != 'unfrozen_parameters'])
def test_off_is_accepted(name):
    for off in (None, False, 0, '', []): assert not any(name in note for note in load(**{name: off}).notes)
    assert f'`{name}` is not supported. ' in refuse(**{name: 2})


def test_batch():
    assert load(batch_size=8, micro_batch_size=2).gradient_accumulation_steps == 4
    assert load(batch_size=8, gradient_accumulation_steps=2).micro_batch_size == 4
    sizes = dict(batch_size=8, gradient_accumulation_steps=2, micro_batch_size=4)
    assert load(**sizes).notes == load(**sizes, seed=1).notes
    for wrong in ({'batch_size': 8}, {'batch_size': 7, 'micro_batch_size': 2},
        {'batch_size': 8, 'micro_batch_size': 2, 'gradient_accumulation_steps': 2},
        {'batch_size': 'x', 'micro_batch_size': 1}):
        assert '`batch_size` must be `micro_batch_size` x `gradient_accumulation_steps`' in refuse(**wrong)


def test_lora_on_4_bits_is_qlora():
    config = load(load_in_4bit=True)
    assert config.adapter == 'qlora' and any('`adapter: qlora`' in n for n in config.notes)


def test_no_adapter():
    values = {k: v for k, v in BASE.items() if k != 'adapter'}
    assert load_config(values).adapter == 'qlora' and load_config(values).notes == [] # a file of llmft
    full = load_config(values | {'strict': False, 'adapter': None, 'load_in_4bit': False})
    assert full.adapter == 'full' and any('all weights are trained' in n for n in full.notes)
    with pytest.raises(UserError, match='`adapter` is missing, but `lora_r` is given'):
        load_config(values | {'strict': False, 'lora_r': 8})
    blank = load_config(values | {'strict': False, 'lora_r': 8, 'adapter': None}) # Axolotl passes over `lora_r` then
    assert blank.adapter == 'full' and any('Not used: lora_r.' in n for n in blank.notes)


@pytest.mark.parametrize('key', SIZE)
def test_an_adapter_says_its_size(key):
    values = {k: v for k, v in (BASE | SIZE).items() if k != key}
    assert load_config(values).adapter == 'lora' # a file of llmft
    message = f'`adapter` is not complete: Axolotl has no default for the rest. Add it, as `{key}: [0-9a-z]+`.$'
    with pytest.raises(UserError, match=message):
        load_config(values | {'strict': False})
    assert load_config(values | {'strict': False, 'lora_model_dir': 'old'}).lora_model_dir == 'old' # it brings its own


def test_missing_keys_mean_what_they_mean_there():
    bare = {k: v for k, v in (BASE | SIZE).items() if k != 'sequence_len'}
    ours, theirs = load_config(bare), load_config(bare | {'dataset_prepared_path': None})
    assert (ours.sequence_len, ours.sample_packing, ours.micro_batch_size) == (2048, True, 2)
    assert (theirs.sequence_len, theirs.sample_packing, theirs.micro_batch_size) == (512, False, 1)
    assert any('`sequence_len: 512`, `sample_packing: false`, `micro_batch_size: 1`' in n for n in theirs.notes)


def test_linear_layers_join_named_ones():
    config = load(lora_target_linear=True, lora_target_modules=['embed_tokens'])
    assert config.lora_target_linear and config.lora_target_modules == ['embed_tokens']


@pytest.mark.parametrize('old, kernel', {
    'flash_attention': 'flash_attention_2', 'xformers_attention': 'sdpa',
    'sdp_attention': 'sdpa', 'eager_attention': 'eager', 'flex_attention': 'flex_attention'}.items())
def test_attention(old, kernel):
    assert load(**{old: True}).attn_implementation == kernel
    assert load(**{old: False}).attn_implementation == 'auto'
    both = {old: True, 'attn_implementation': 'sdpa'}
    assert f'`{old}` and `attn_implementation` say the same twice' in refuse(**both)


@pytest.mark.parametrize('name, kernel', {
    'xformers': 'sdpa', 'flash_attention_3': 'flash_attention_3', 'somebody/attention': 'flash_attention_2',
    'kernels-community/flash-attn3': 'kernels-community/flash-attn3'}.items())
def test_attention_by_name(name, kernel): assert load(attn_implementation=name).attn_implementation == kernel


@pytest.mark.parametrize('values, part', [
    (dict(attn_implementation='sage'), '`attn_implementation: sage` is not supported. It is not exact.'),
    (dict(optimizer='muon'), '`optimizer: muon` is not supported. Use `adamw_torch`.'),
    (dict(lr_scheduler='rex'), '`lr_scheduler: rex` is not supported. Use `cosine`.'),
    (dict(plugins=['axolotl.integrations.liger.LigerPlugin', 'axolotl.integrations.spectrum.SpectrumPlugin']),
        '`plugins: axolotl.integrations.spectrum.SpectrumPlugin` is not supported.'),
    (dict(save_safetensors=False), '`save_safetensors: false` is not supported.'),
    (dict(model_type='BertForSequenceClassification'),
        '`model_type: BertForSequenceClassification` is not a class that transformers loads as a language model'),
    (dict(tensor_parallel_size=2), '`tensor_parallel_size` is not supported. '),
    (dict(adapter='ia3'), '`adapter: ia3` is not supported. Use `lora` or `qlora`.'),
    (dict(revision_of_model='a', model_revision='b'), '`model_revision` is another name of `revision_of_model`'),
    (dict(shuffle_merged_datasets=False, shuffle_before_merging_datasets=True),
        '`shuffle_before_merging_datasets` without'),
    (dict(dataset_prepared_pth='x'), 'Did you mean `dataset_prepared_path`?'),
    (dict(adam_eps=1e-8), '`adam_eps` is not a key that llmft knows. Did you mean `adam_epsilon`?'),
])
def test_values(values, part): assert part in refuse(**values)


LIGER = ['axolotl.integrations.liger.LigerPlugin']


def test_liger_and_the_compiler():
    config = load(plugins=LIGER, liger_rope=True, liger_glu_activation=True, torch_compile='auto',
                  torch_compile_mode='max-autotune')
    off = dict(rms_norm=False, layer_norm=False)
    assert config.use_liger_kernel
    assert config.liger_kernel_config == dict(rope=True, swiglu=True, geglu=True) | off
    assert (config.torch_compile, config.torch_compile_mode) == (True, 'max-autotune')
    without = load(liger_rope=True)
    assert not without.use_liger_kernel and any('the plugin of Liger is not named' in note for note in without.notes)
    for values in (dict(plugins=LIGER), dict(plugins=LIGER, liger_rope=False)): # no part of it is on
        assert not load(**values).use_liger_kernel
    other = 'axolotl.integrations.kernels.KernelsPlugin'
    config = load(plugins=[*LIGER, other], liger_rms_norm=True, liger_cross_entropy=True)
    assert config.liger_kernel_config['rms_norm'] and sum('`plugins`' in note for note in config.notes) == 1
    assert any('`liger_cross_entropy` is left out: the loss is computed a piece' in note for note in config.notes)


def test_old_names():
    assert load(optimizer='adamw_hf').optimizer == 'adamw_torch'
    assert load(tensor_parallel_size=1).notes == load(tensor_parallel_size=0).notes
    config = load(model_revision='x', noisy_embedding_alpha='5', evaluation_strategy='epoch',
        exact_deduplication=False, model_config={'rope_theta': '1e6'})
    assert (config.revision_of_model, config.neftune_noise_alpha) == ('x', 5)
    assert (config.eval_strategy, config.dedup) == ('epoch', 'off')
    assert config.overrides_of_model_config == {'rope_theta': 1e6} # a number, also deep inside


def test_tokens_by_name():
    config = load(tokens={'bos_token': '<s>'}, special_tokens={'pad_token': '</s>'})
    assert config.special_tokens == {'bos_token': '<s>', 'pad_token': '</s>'}
    assert load(tokens=['<a>']).tokens == ['<a>']


def test_shares():
    config = load(dataset_shard_num=4, dataset_shard_idx=1, gpu_memory_limit='14GiB', eval_sequence_len=512)
    assert (config.datasets[0].shards, config.datasets[0].shards_idx, config.max_memory) == (4, 1, {'0': '14GiB'})
    assert '`eval_sequence_len` is not supported' in refuse(eval_sequence_len=256)


def test_numbers_as_text():
    config = load(learning_rate='2e-4', micro_batch_size='4', val_set_size='0.1',
        lr_scheduler_kwargs={'min_lr': '1e-5', 'deep': [{'n': '3', 'name': 'cosine'}]})
    assert (config.learning_rate, config.micro_batch_size, config.val_set_size) == (2e-4, 4, .1)
    assert config.lr_scheduler_kwargs == {'min_lr': 1e-5, 'deep': [{'n': 3, 'name': 'cosine'}]}


# entries

def entry(**values):
    dataset = {'path': 'a.jsonl', 'type': 'chat_template'} | values
    return load_config(BASE | {'datasets': [dataset]}).datasets[0]


def test_entries():
    fields = dict(message_field_role='from', message_field_content='value')
    assert entry(**fields).message_property_mappings == {'role': 'from', 'content': 'value'}
    assert entry(type='sharegpt', conversation='chatml').chat_template == 'chatml'
    assert entry(type='sharegpt', conversation='vicuna_v1.1').type == 'vicuna_v1.1'
    assert entry(type='alpaca_chat.load', conversation='chatml').type == 'alpaca:chatml'
    assert entry(type='sharegpt_simple.load_role').type == 'sharegpt.load_role'
    for style in ('vicuna', 'chat', 'vicuna_v1.1'): assert entry(type=f'sharegpt:{style}').type == 'vicuna_v1.1'
    assert entry(type='sharegpt:llama3').chat_template == 'llama3'
    roles = {'input': ['human'], 'output': ['gpt']}
    assert entry(type='sharegpt', roles=roles).roles == {'user': ['human'], 'assistant': ['gpt']}
    assert entry(preprocess_shards=4, trust_remote_code=False).type == 'chat_template'


@pytest.mark.parametrize('values, part', [
    (dict(message_field_role='from', message_property_mappings={'role': 'who'}),
        '`message_field_role` and `message_property_mappings` do not agree'),
    (dict(conversation='chatml'), '`conversation: chatml` is not supported'),
    (dict(type='sharegpt:koala'), '`type: sharegpt:koala` is not supported'),
    (dict(type='alpaca_chat', conversation='vicuna_v1.1'), '`conversation: vicuna_v1.1` is not supported'),
    (dict(type='alpaca_chat.load_qa', conversation='chatml'), '`conversation: chatml` is not supported'),
    (dict(type='stepwise_supervised'), '`type: stepwise_supervised` is not supported'),
    (dict(typ='alpaca'), 'Did you mean `type`?'),
])
def test_wrong_entries(values, part):
    with pytest.raises(UserError) as e: entry(**values)
    assert part in str(e.value)


def test_no_type(tmp_path):
    (tmp_path/'a.yml').write_text('base_model: me/model\nadapter: full\nstrict: false\ndatasets:\n  - path: a.jsonl\n')
    with pytest.raises(UserError) as e: load_config(tmp_path/'a.yml')
    assert 'a.yml:5: `type` is missing: Axolotl would look for ready-made tokens' in str(e.value)


def test_all_errors_at_once_with_their_lines(tmp_path):
    (tmp_path/'a.yml').write_text('''\
base_model: me/model
adapter: lora
lisa_n_layers: 2
datasets:
  - path: a.jsonl
    type: alpaca
    temperature: 1
seed: many
lora_rnk: 8
batch_size: 3
micro_batch_size: 2
''')
    with pytest.raises(UserError) as e: load_config(tmp_path/'a.yml')
    assert [re.match(r'.*a\.yml:(\d+): `(\w+)`', line).groups() for line in str(e.value).splitlines()] == [
        ('2', 'adapter'), ('3', 'lisa_n_layers'), ('7', 'temperature'), ('8', 'seed'), ('9', 'lora_rnk'),
        ('10', 'batch_size')]


# converting

def yaml_of(text): return yaml.safe_load(text)


@pytest.mark.parametrize('name', LOADED)
def test_convert_axolotl(name, tmp_path):
    text = convert(FILES/f'{name}.yml')
    (tmp_path/'new.yml').write_text(text)
    old, new = load_config(FILES/f'{name}.yml'), load_config(tmp_path/'new.yml')
    assert new == old and new.notes == []
    assert {*yaml_of(text)} <= {*Config.model_fields}
    for note in old.notes: assert f'# {note}\n' in text


def test_convert_refuses(tmp_path):
    (tmp_path/'a.yml').write_text((FILES/'guide.yml').read_text() + 'gptq: true\n')
    with pytest.raises(UserError, match=r'a.yml:\d+: `gptq` is not supported'): convert(tmp_path/'a.yml')


FACTORY = {'model_name_or_path': 'Qwen/Qwen3-4B', 'stage': 'sft', 'do_train': True, 'finetuning_type': 'lora',
    'lora_rank': 8, 'lora_target': 'all', 'template': 'qwen3',
    'dataset': 'mine,chats', 'cutoff_len': 1024, 'per_device_train_batch_size': 1, 'gradient_accumulation_steps': 8,
    'learning_rate': '1.0e-4', 'num_train_epochs': 3.0,
    'lr_scheduler_type': 'cosine', 'warmup_ratio': 0.1, 'bf16': True, 'plot_loss': True, 'overwrite_cache': True,
    'preprocessing_num_workers': 16, 'logging_steps': 10,
    'save_steps': 500, 'output_dir': 'saves/x', 'report_to': 'none', 'resume_from_checkpoint': None, 'val_size': 0.1,
    'eval_strategy': 'steps', 'eval_steps': 500}
INFO = {'mine': {'file_name': 'mine.json'},
    'chats': {'hf_hub_url': 'me/chats', 'formatting': 'sharegpt', 'split': 'train', 'num_samples': 100},
    'named': {'file_name': 'n.json', 'columns': {'prompt': 'question', 'response': 'answer'}},
    'pairs': {'file_name': 'p.json', 'ranking': True}}


@pytest.fixture
def factory(tmp_path):
    def make(**values):
        (tmp_path/'dataset_info.json').write_text(json.dumps(INFO))
        (tmp_path/'f.yaml').write_text(yaml.safe_dump(FACTORY | values))
        return convert(tmp_path/'f.yaml')
    return make


def config_of(text, tmp_path):
    (tmp_path/'out.yml').write_text(text)
    return load_config(tmp_path/'out.yml')


def test_llama_factory(factory, tmp_path):
    text = factory()
    config = config_of(text, tmp_path)
    assert (config.adapter, config.lora_r, config.lora_alpha, config.lora_target_linear) == ('lora', 8, 16, True)
    assert (config.sequence_len, config.learning_rate) == (1024, 1e-4)
    assert (config.micro_batch_size, config.lr_scheduler, config.warmup_ratio) == (1, 'cosine', .1)
    assert (config.val_set_size, config.sample_packing) == (.1, False)
    mine, chats = config.datasets
    assert mine.path == str(tmp_path/'mine.json')
    assert mine.type.no_input_format == '<|im_start|>user\n{instruction}<|im_end|>\n<|im_start|>assistant\n'
    assert (chats.path, chats.type, chats.field_messages) == ('me/chats', 'chat_template', 'conversations')
    assert (chats.split, chats.roles['user']) == ('train[:100]', ['human'])
    assert chats.chat_template == 'qwen3'
    for part in ('`plot_loss` is left out', '`overwrite_cache` is left out'):
        assert f'# {part}' in text
    note = '# `lora_alpha`: not given, so the default of LLaMA-Factory.\n'
    assert text.index(note) + len(note) == text.index('lora_alpha: 16')


def test_llama_factory_variants(factory, tmp_path):
    assert config_of(factory(quantization_bit=4, dataset='mine'), tmp_path).adapter == 'qlora'
    assert config_of(factory(finetuning_type='full', lora_rank=None, lora_target=None), tmp_path).adapter == 'full'
    assert config_of(factory(lora_target='q_proj,v_proj'), tmp_path).lora_target_modules == ['q_proj', 'v_proj']
    user = config_of(factory(dataset='named', template='alpaca'), tmp_path).datasets[0].type
    assert (user.field_instruction, user.field_output) == ('question', 'answer')
    assert user.format == '### Instruction:\n{instruction}\n{input}\n\n### Response:\n'
    assert user.no_input_format == '### Instruction:\n{instruction}\n\n### Response:\n'
    assert '# `datasets`: `other` is not described' in factory(dataset='other')
    assert 'in `template: phi4`; here they are in the words of Alpaca' in factory(dataset='mine', template='phi4')


@pytest.mark.parametrize('values, part', [
    (dict(stage='dpo'), '`stage: dpo` has no counterpart'),
    (dict(finetuning_type='freeze'), '`finetuning_type: freeze` has no counterpart'),
    (dict(quantization_bit=3), '`quantization_bit: 3` has no counterpart'),
    (dict(use_galore=True), '`use_galore` has no counterpart in llmft. Use plain `lora`.'),
    (dict(cutof_len=3), '`cutof_len` is not an argument that llmft knows. Did you mean `cutoff_len`?'),
    (dict(lora_rank='many'), '`lora_r` must be a whole number'),
    (dict(dataset='pairs'), 'hold preferences'),
])
def test_llama_factory_refused(values, part, factory):
    with pytest.raises(UserError) as e: factory(**values)
    assert part in str(e.value)


UNSLOTH = {'model_name': 'unsloth/Qwen3-4B', 'max_seq_length': 2048, 'load_in_4bit': True, 'load_in_8bit': False,
    'full_finetuning': False, 'r': 32, 'lora_alpha': 32, 'lora_dropout': 0, 'bias': 'none',
    'target_modules': ['q_proj', 'v_proj'], 'use_gradient_checkpointing': 'unsloth', 'random_state': 3407,
    'use_rslora': False, 'loftq_config': None, 'dtype': None,
    'per_device_train_batch_size': 2, 'gradient_accumulation_steps': 4, 'warmup_steps': 5, 'max_steps': 30,
    'learning_rate': 2e-4, 'logging_steps': 1, 'optim': 'adamw_8bit',
    'weight_decay': 0.01, 'lr_scheduler_type': 'linear', 'seed': 3407, 'report_to': 'none', 'output_dir': 'outputs',
    'dataset_text_field': 'text', 'dataset_num_proc': 2, 'packing': False}


def test_unsloth(tmp_path):
    (tmp_path/'u.json').write_text(json.dumps(UNSLOTH, indent='\t'))
    text = convert(tmp_path/'u.json')
    config = config_of(text, tmp_path)
    assert (config.adapter, config.lora_r, config.lora_target_modules) == ('qlora', 32, ['q_proj', 'v_proj'])
    assert (config.seed, config.max_steps, config.optimizer) == (3407, 30, 'adamw_8bit')
    assert (config.sequence_len, config.warmup_steps, config.report_to) == (2048, 5, [])
    assert (config.datasets[0].type, config.datasets[0].field) == ('completion', 'text')
    assert config.gradient_checkpointing == 'offload'
    for part in ('the arguments name no data', '`num_epochs`: not given, so the default of Unsloth'):
        assert part in text


def test_groups_and_trl(tmp_path):
    (tmp_path/'t.yaml').write_text(yaml.safe_dump({
        'model': {'model_name_or_path': 'me/model', 'dtype': 'bfloat16'},
        'peft': {'use_peft': True, 'lora_target_modules': 'all-linear'},
        'training': {'dataset_name': 'me/chats', 'max_length': 1024, 'packing': True, 'max_steps': -1,
            'warmup_steps': 0.1, 'assistant_only_loss': True}}))
    config = config_of(convert(tmp_path/'t.yaml'), tmp_path)
    assert (config.adapter, config.bf16, config.sequence_len, config.sample_packing) == ('lora', True, 1024, True)
    assert (config.max_steps, config.warmup_ratio, config.learning_rate) == (None, .1, 2e-5)
    assert config.lora_target_linear and config.datasets[0].path == 'me/chats'


def test_not_recognised(tmp_path):
    (tmp_path/'x.yml').write_text('hello: 1\n')
    with pytest.raises(UserError, match='these are not the settings of Axolotl'): convert(tmp_path/'x.yml')


def test_tables_of_arguments():
    tables = [RENAMED_ARGS, IGNORED_ARGS, UNSUPPORTED_ARGS, ARG_CONVERTERS]
    names = [name for table in tables for name in table]
    assert len(names) == len({*names})
    assert {*RENAMED_ARGS.values()} <= {*Config.model_fields}
    assert not {*RENAMED_ARGS} & {*Config.model_fields}


def test_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    def run(*args):
        with pytest.raises(SystemExit) as e: main(['convert', *args])
        out = capsys.readouterr()
        return e.value.code or 0, out.out, out.err
    code, out, _ = run(str(FILES/'guide.yml'))
    assert code == 0 and yaml_of(out)['lora_r'] == 32 and not [*tmp_path.iterdir()]
    code, out, _ = run(str(FILES/'guide.yml'), '--out', 'new.yml')
    assert code == 0 and load_config('new.yml') == load_config(FILES/'guide.yml')
    code, _, err = run(str(FILES/'guide.yml'), '--out', 'new.yml')
    assert code == 2 and 'new.yml exists already' in err
    code, _, err = run('nothing.yml')
    assert code == 2 and 'nothing.yml' in err


# the notes of a run

def test_notes_are_told_and_kept(tmp_path, monkeypatch, capsys):
    from tests.tiny import save_tiny, small_tokenizer
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path/'model', tokenizer=small_tokenizer())
    rows = [{'instruction': f'question {i}', 'output': f'answer {i}'} for i in range(12)]
    (tmp_path/'rows.jsonl').write_text(''.join(json.dumps(row) + '\n' for row in rows))
    (tmp_path/'run.yml').write_text('''\
base_model: ./model
adapter: qlora
load_in_4bit: true
strict: false
batch_size: 2
micro_batch_size: 1
max_steps: 1
sequence_len: 64
sample_packing: false
lora_r: 4
lora_alpha: 8
lora_target_linear: true
warmup_steps: 0
datasets:
  - path: rows.jsonl
    type: alpaca
output_dir: out
''')
    notes = load_config('run.yml').notes
    assert len(notes) == 2 and '`batch_size: 2`' in notes[0] and '`strict` is left out' in notes[1]
    with pytest.raises(SystemExit): main(['check', 'run.yml'])
    said = capsys.readouterr().out
    assert all(said.count(note) == 1 for note in notes)
    from llmft.training.train import finetune
    lines = []
    run = finetune('run.yml', say=lambda x: lines.append(str(x)))
    assert all(lines.count(note) == 1 for note in notes)
    assert (run.path/'config_completed.yml').read_text().startswith(''.join(f'# {note}\n' for note in notes))
    assert run.config == load_config('run.yml', learning_rate=run.config.learning_rate)
