"YAML as people have it: Axolotl's leftovers and mistakes, and settings of LLaMA-Factory, TRL and Unsloth."
import json, math

import pytest
import yaml

from llmft.config.axolotl import AXOLOTL_DATASET_KEYS, AXOLOTL_KEYS, translate_axolotl
from llmft.config.config import load_config, read_yaml
from llmft.config.convert import convert, python_settings
from llmft.core import UserError

AXOLOTL = '''\
base_model: me/model
model_type: LlamaForCausalLM
adapter: qlora
load_in_4bit: true
lora_r: 8
lora_alpha: 16
lora_target_linear: true
sequence_len: 512
micro_batch_size: 2
sample_packing: false
warmup_ratio: 0.1
datasets:
  - path: rows.jsonl
    type: alpaca
'''
OURS = 'base_model: me/model\nadapter: lora\ndatasets:\n  - path: rows.jsonl\n    type: alpaca\n'


@pytest.fixture
def load(tmp_path):
    def load(text, base=AXOLOTL):
        (tmp_path/'run.yml').write_text(base + text)
        return load_config(tmp_path/'run.yml')
    return load


@pytest.fixture
def refuse(load):
    def refuse(*args):
        with pytest.raises(UserError) as e: load(*args)
        return str(e.value)
    return refuse


def notes_of(config, name): return [note for note in config.notes if f'`{name}' in note]


# keys that nobody knows

@pytest.mark.parametrize('line', ['data_seed: 3', 'prompt_style: instruct', 'use_peft: true', 'adam_eps: 1e-6',
    'bnb_4bit_quant_type: nf4', 'test_value: 1', 'sample_packing_seq_len_multiplier: 2', 'num_train_epochs: 2'])
def test_unknown_key_is_a_note(line, load):
    key = line.split(':')[0]
    assert len(notes_of(load(line), key)) == 1


@pytest.mark.parametrize('line, meant', {'warmup_ration: 0.1': 'warmup_ratio', 'lora_rnk: 3': 'lora_r',
    'eval_per_epoch: 1': 'evals_per_epoch', 'optimiser: adamw_torch': 'optimizer', 'load_4bit: true': 'load_in_4bit',
    'context_parapllel_size: 1': None}.items())
def test_near_miss_is_an_error(line, meant, load, refuse):
    if meant is None: assert notes_of(load(line), 'context_parapllel_size') # nearly a key that is not supported
    else: assert f'Did you mean `{meant}`?' in refuse(line)


def test_unknown_key_in_our_own_file_is_an_error(refuse):
    assert '`data_seed` is not a key that llmft knows' in refuse('data_seed: 3\n', OURS)


def test_unknown_keys_deeper_down(load, refuse):
    config = load('    num_proc: 4\n    cache_dir: here\n')
    assert notes_of(config, 'num_proc') and notes_of(config, 'cache_dir')
    config = load('test_datasets:\n  - path: a.jsonl\n    type: {field_instruction: q, colour: red}\n')
    assert notes_of(config, 'colour') and config.test_datasets[0].type.field_instruction == 'q'
    assert 'Did you mean `split`?' in refuse('    splitt: train\n')


# off

@pytest.mark.parametrize('line, key, value', [
    ('evals_per_epoch: 0', 'eval_strategy', 'no'), ('eval_steps: 0', 'eval_strategy', 'no'),
    ('saves_per_epoch: 0', 'save_strategy', 'no'), ('eval_strategy: no', 'eval_strategy', 'no'),
    ('save_strategy: none', 'save_strategy', 'no'), ('report_to: none', 'report_to', []),
    ('wandb_log_model: false', 'wandb_log_model', None), ('wandb_watch: false', 'wandb_watch', None),
    ('hub_model_id: none', 'hub_model_id', None), ('special_tokens: false', 'special_tokens', {}),
    ('dedup: off', 'dedup', 'off'), ('deepspeed: none', 'deepspeed', None), ('gptq: none', 'adapter', 'qlora'),
    ('lora_model_dir: none', 'lora_model_dir', None), ('tokens: false', 'tokens', [])])
@pytest.mark.parametrize('base', [AXOLOTL, OURS], ids=['axolotl', 'llmft'])
def test_off(line, key, value, base, load):
    if base == OURS and line.startswith('gptq'): return # the key itself makes it a file of Axolotl
    assert getattr(load(line + '\n', base), key) == value


@pytest.mark.parametrize('line', ['max_steps: 0', 'max_steps: -1', 'early_stopping_patience: 0', 'eval_batch_size: 0',
    'neftune_noise_alpha: 0', 'loss_watchdog_threshold: false', 'val_set_size: false', 'logging_steps: 0'])
def test_zero_is_off_in_files_of_axolotl(line, load):
    key = line.split(':')[0]
    assert key not in load(line).model_fields_set


def test_zero_is_an_error_where_it_can_only_be_a_mistake(refuse):
    for line in ('max_steps: 0', 'micro_batch_size: 0', 'logging_steps: 0'): assert 'above 0' in refuse(line, OURS)
    assert 'above 0' in refuse(AXOLOTL.replace('lora_r: 8', 'lora_r: 0'), '')


def test_none_stays_where_it_is_a_choice(load):
    config = load('    train_on_eos: none\n    train_on_eot: none\n')
    assert (config.datasets[0].train_on_eos, config.datasets[0].train_on_eot) == ('none', 'none')


# names that look like numbers

@pytest.mark.parametrize('line, key, value', [('wandb_name: 3.10', 'wandb_name', '3.10'),
    ('wandb_run_id: 12e4567', 'wandb_run_id', '12e4567'),
    ('revision_of_model: 0123456', 'revision_of_model', '0123456'),
    ('output_dir: 2024-01-02', 'output_dir', '2024-01-02'), ('wandb_project: 1_000', 'wandb_project', '1_000'),
    ('hub_model_id: 7', 'hub_model_id', '7')])
def test_name_is_what_is_written(line, key, value, load): assert getattr(load(line), key) == value


def test_name_of_a_source_is_what_is_written(load):
    source = load('    name: no\n    split: 2023\n    revision: 00\n    field: 0\n').datasets[0]
    assert (source.name, source.split, source.revision, source.field) == ('no', '2023', '00', '0')
    assert load_config({'base_model': 'a', 'wandb_name': 3.1, 'datasets': [{'path': 'a'}]}).wandb_name == '3.1'


def test_optimizer_of_that_name(load):
    from llmft.training.arguments import check_training_options
    config = load('optimizer: 3\n', OURS)
    with pytest.raises(UserError, match='there is none called `3`'): check_training_options(config)


# a key that is given twice; lists that hold themselves

def test_given_twice(load, refuse):
    config = load('seed: 1\nseed: 2\nadapter: lora\nload_in_4bit: false\n')
    assert (config.seed, config.adapter) == (2, 'lora')
    assert len(notes_of(config, 'seed')) == len(notes_of(config, 'adapter')) == 1
    twice = load('    split: a\n    split: b\n')
    assert twice.datasets[0].split == 'b' and 'lines 15 and 16' in notes_of(twice, 'split')[0]
    assert '`seed` is given twice' in refuse('seed: 1\nseed: 2\n', OURS)


@pytest.mark.parametrize('text', ['a: &x [*x]', 'a: &x {b: *x}', 'a: &x\n  - [1, [*x]]',
    'a: &a [x, x]\nb: &b [*a, *a]\n' + ''.join(f'{c}: &{c} [*{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}, *{p}]\n'
        for p, c in zip('bcdefgh', 'cdefghi'))])
def test_circles_and_bombs(text):
    with pytest.raises(UserError, match='lead in a circle, or stand for more than'): read_yaml(text)


def test_names_may_be_repeated():
    assert read_yaml('a: &x [1]\nb: *x')[0] == {'a': [1], 'b': [1]}


# what old and rare keys become

@pytest.mark.parametrize('line, key, value', [
    ('max_packed_sequence_len: 512', 'sample_packing', True),
    ('rope_scaling: {type: linear, factor: 2}', 'overrides_of_model_config', {
        'rope_scaling': {'type': 'linear', 'factor': 2}}),
    ('max_memory: [14GiB, 10GiB]', 'max_memory', {'0': '14GiB', '1': '10GiB'}),
    ('peft: {loftq_config: {loftq_bits: 4}}', 'peft_init_lora_weights', 'loftq'),
    ('peft: {loftq_config: {loftq_bits: 4}}', 'adapter', 'qlora'),
    ('peft: {backend: torchao, weight_dtype: int4, group_size: 64}', 'load_in_4bit', True),
    ('bf16: full', 'bf16', True), ('cosine_min_lr_ratio: 1.0', 'cosine_min_lr_ratio', 1),
    ('report_to: wandb', 'report_to', ['wandb'])])
def test_becomes(line, key, value, load):
    text = AXOLOTL.replace('sample_packing: false\n', '') if 'packed' in line else AXOLOTL
    assert getattr(load(line, text), key) == value


@pytest.mark.parametrize('line', ['push_dataset_to_hub: me/data', 'flash_attn_rms_norm: true', 'eta_min: 1e-5',
    'unfrozen_parameters: [lm_head]', 'tokenizer_use_mistral_common: true',
    'dataset_processes: 8', 'dataset_shard_idx: 0', 'unsloth_lora_mlp: true', 'dp_shard_size: 2',
    'use_ray: true', 'expert_parallel_size: 2', 'use_cut_cross_entropy: true'])
def test_is_told(line, load): assert len(notes_of(load(line), line.split(':')[0])) == 1


def test_unfrozen_parameters_without_an_adapter(refuse):
    text = 'base_model: a\nadapter: full\nstrict: false\ndatasets: [{path: a, type: alpaca}]\n'
    assert '`unfrozen_parameters` is not supported' in refuse('unfrozen_parameters: [lm_head]\n', text)


def test_stored_bits(load, refuse):
    config = load('model_quantization_config: Mxfp4Config\nmodel_quantization_config_kwargs: {dequantize: true}\n')
    from transformers.quantizers.auto import AutoQuantizationConfig
    made = AutoQuantizationConfig.from_dict(config.model_kwargs['quantization_config'])
    assert type(made).__name__ == 'Mxfp4Config' and made.dequantize and config.adapter == 'lora'
    for line in ('model_quantization_config: Mxfp4Config', 'model_quantization_config: OtherConfig'):
        assert 'dequantize: true' in refuse(line)


@pytest.mark.parametrize('line', ['peft: {loftq_config: {loftq_bits: 2}}', 'peft: {other: 1}', 'peft: 3',
    'rl: dpo', 'gptq: true', 'dataset_shard_num: 2\ntest_datasets: []\n'])
def test_refusals_say_what_to_do(line, load, refuse):
    if line.startswith('dataset_shard_num'): assert load(line).datasets[0].shards == 2
    else: assert f'`{line.split(":")[0]}' in refuse(line)
    if line == 'rl: dpo': assert 'trl dpo' in refuse(line)


def test_sources(load, refuse):
    source = load('    train_on_split: train\n    ds_type: jsonl\n').datasets[0]
    assert (source.split, source.ds_type) == ('train', 'json')
    sharegpt = AXOLOTL.replace('type: alpaca', 'type: sharegpt')
    assert load('    field_human: q\n    field_model: a\n', sharegpt).datasets[0].roles == {
        'user': ['q'], 'assistant': ['a']}
    assert 'do not agree' in refuse('    train_on_split: train\n    split: test\n')


# whose file it is

def test_file_says_that_it_is_axolotls(load):
    shared = 'base_model: me/model\nsequence_len: 64\ndatasets: [{path: a, type: alpaca}]\n'
    theirs, unsaid = load(shared, '# axolotl, for our cluster\n'), load(shared, '')
    assert (theirs.adapter, theirs.sample_packing) == ('full', False)
    assert (unsaid.adapter, unsaid.sample_packing) == ('qlora', True)
    assert ['# axolotl' in note for note in unsaid.notes] == [True]
    assert load('dedup: exact\n' + shared, '').notes == [] # a key that only llmft has
    assert load('fsdp:\ndeepspeed:\nadapter: lora\n' + shared, '').notes == []


# nothing crashes

@pytest.mark.parametrize('table', [AXOLOTL_KEYS, AXOLOTL_DATASET_KEYS], ids=['file', 'entry'])
@pytest.mark.parametrize('value', [3, 'x', [1], {'a': 1}, math.nan, -1, [{'a': [None]}]], ids=repr)
def test_any_value_of_any_key(table, value):
    for name in table:
        given = {'strict': False, 'adapter': 'lora', 'special_tokens': value, 'roles': value}
        if table is AXOLOTL_KEYS: values = {'datasets': [{'path': 'a', 'type': 'alpaca'}], name: value} | given
        else: values = given | {'datasets': [{'path': 'a', 'type': 'sharegpt', name: value}]}
        translate_axolotl(values)
        if table[name].status != 'honoured': continue
        try: load_config({'base_model': 'a'} | values)
        except UserError: pass


@pytest.mark.parametrize('values', [{'tokens': {'pad_token': 'x'}, 'special_tokens': 'x'},
    {'dataset_shard_num': 3, 'datasets': 3}, {'datasets': [{'path': 'a', 'type': 3, 'conversation': [1]}]}])
def test_wrong_types_are_user_errors(values):
    with pytest.raises(UserError): load_config({'base_model': 'a', 'strict': False} | values)


# other programs

@pytest.fixture
def made(tmp_path):
    def made(values, name='f.yaml'):
        text = values if isinstance(values, str) else yaml.safe_dump(values)
        (tmp_path/name).write_text(text)
        new = convert(tmp_path/name)
        (tmp_path/'out.yml').write_text(new)
        return new, load_config(tmp_path/'out.yml')
    return made


FACTORY = {'model_name_or_path': 'me/model', 'stage': 'sft', 'finetuning_type': 'lora', 'dataset': 'mine'}


@pytest.mark.parametrize('values', [{'dataset': 3}, {3: 4}, {'quantization_bit': 4.0}, {'max_samples': math.nan},
    {'lora_rank': math.nan}, {'dataset': [1, {'a': 2}]}, {'dataset_dir': 5}, {'warmup_steps': math.nan},
    {'template': [1]}, {'eval_dataset': True}])
def test_factory_values(values, made):
    try: made(FACTORY | values)
    except UserError as e: assert 'Traceback' not in str(e)
    if values == {'quantization_bit': 4.0}: assert made(FACTORY | values)[1].load_in_4bit


def test_dataset_info_lies_above(tmp_path, made):
    info = {'mine': {'file_name': 'm.json', 'formatting': 'sharegpt', 'columns': None, 'tags': {'role_tag': 'role'}}}
    (tmp_path/'examples').mkdir()
    (tmp_path/'data').mkdir()
    (tmp_path/'data'/'dataset_info.json').write_text(json.dumps(info))
    _, config = made(FACTORY | {'template': 'llama3'}, 'examples/f.yaml')
    assert config.datasets[0].path.endswith('data/m.json') and config.datasets[0].chat_template == 'llama3'
    (tmp_path/'data'/'dataset_info.json').write_text('[]')
    with pytest.raises(UserError, match='must hold a mapping'): made(FACTORY, 'examples/f.yaml')


@pytest.mark.parametrize('template, type', {'alpaca': 'llamafactory:alpaca', 'vicuna': 'llamafactory:vicuna',
    'default': 'llamafactory:default', 'llama2': 'llamafactory:llama2'}.items())
def test_factory_template_is_the_format_of_that_name(template, type, made):
    assert made(FACTORY | {'template': template})[1].datasets[0].type == type


def test_version_1_of_llama_factory(made):
    with pytest.raises(UserError, match='version 1 of LLaMA-Factory'):
        made({'model': 'me/model', 'peft_config': {'name': 'lora'}, 'train_dataset': 'data.yaml'})


@pytest.mark.parametrize('stage', ['dpo', 'kto', 'rm'])
def test_preferences_go_elsewhere(stage, made):
    with pytest.raises(UserError, match='trl dpo'): made(FACTORY | {'stage': stage})


@pytest.mark.parametrize('name', ['me/model-AWQ', 'me/model-GPTQ-Int4', 'me/model-hqq', 'me/model-FP8'])
def test_bases_of_few_bits_are_told(name, made):
    assert 'Take the 16-bit model' in made(FACTORY | {'model_name_or_path': name})[0]


TRL = {'model_name_or_path': 'me/model', 'dataset_name': 'me/chats', 'use_peft': True}


def test_trl_trains_what_it_trains(made, tmp_path):
    text, config = made(TRL)
    assert config.lora_target_modules == ['q_proj', 'v_proj'] and not config.lora_target_linear
    assert config.train_on_inputs and '# `train_on_inputs`: TRL learns the questions too' in text
    assert not made(TRL | {'assistant_only_loss': True})[1].train_on_inputs
    assert made(TRL | {'lora_target_modules': 'all-linear'})[1].lora_target_linear
    (tmp_path/'gpt').mkdir()
    (tmp_path/'gpt'/'config.json').write_text('{"model_type": "gpt2"}')
    assert made(TRL | {'model_name_or_path': str(tmp_path/'gpt')})[1].lora_target_modules == ['c_attn']


def test_trl_test_split(made):
    measured = made(TRL | {'dataset_test_split': 'test', 'eval_strategy': 'epoch', 'dataset_train_split': 'train'})[1]
    assert (measured.datasets[0].split, measured.test_datasets[0].split) == ('train', 'test')
    text, config = made(TRL | {'dataset_test_split': 'test'})
    assert config.test_datasets is None and '`dataset_test_split: test` is left out' in text


SCRIPT = '''
from unsloth import FastLanguageModel
import torch
length = 1024
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="unsloth/Qwen3-4B", max_seq_length=length, load_in_4bit=True, dtype=torch.bfloat16, token="hf_secret")
model = FastLanguageModel.get_peft_model(model, r=32, target_modules=["q_proj", "v_proj"], lora_alpha=64,
    lora_dropout=0, bias="none", use_gradient_checkpointing="unsloth", random_state=3407, loftq_config=None)
alpaca_prompt = """### Instruction:
{}
### Response:
{}"""
dataset = load_dataset("me/rows", split="train").map(format)
trainer = SFTTrainer(model=model, tokenizer=tokenizer, train_dataset=dataset, dataset_text_field="text",
    args=SFTConfig(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_steps=60, learning_rate=2e-4,
        fp16=not is_bfloat16_supported(), seed=3407, output_dir="outputs", report_to="none", strange=1))
open("ran.txt", "w").write("it ran")
if False:
    model, tokenizer = FastLanguageModel.from_pretrained(model_name="lora_model", max_seq_length=9)
'''


def notebook(source): return json.dumps({'cells': [
    {'cell_type': 'markdown', 'source': ['text']},
    {'cell_type': 'code', 'source': ['%%capture\n', '!pip install unsloth\n', 'if True:\n', '    !pip list']},
    {'cell_type': 'code', 'source': source.splitlines(keepends=True)}]})


@pytest.mark.parametrize('name', ['train.py', 'train.ipynb'])
def test_unsloth_notebook(name, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text, config = made(SCRIPT if name.endswith('.py') else notebook(SCRIPT), name)
    assert (config.base_model, config.sequence_len, config.lora_r) == ('unsloth/Qwen3-4B', 1024, 32)
    assert (config.adapter, config.lora_target_modules, config.max_steps) == ('qlora', ['q_proj', 'v_proj'], 60)
    assert (config.datasets[0].path, config.datasets[0].type) == ('me/rows', 'alpaca')
    assert config.bf16 is True and config.gradient_checkpointing == 'offload' and config.train_on_inputs
    assert '`fp16` is left out: the program computes it.' in text and '`strange` is left out' in text
    assert 'functions of the notebook' in text and 'hf_secret' not in text
    assert not (tmp_path/'ran.txt').exists() # it is read, never run


def test_chat_notebook(made):
    script = SCRIPT.replace('### Instruction:', '') + '''
tokenizer = get_chat_template(tokenizer, chat_template="llama-3.1")
rows = standardize_sharegpt(rows).map(lambda row: tokenizer.apply_chat_template(row))
trainer = train_on_responses_only(trainer, instruction_part="a", response_part="b")
'''
    config = made(script, 'a.py')[1]
    assert (config.datasets[0].type, config.chat_template, config.train_on_inputs) == ('sharegpt', 'llama3_1', False)


def test_script_for_trl(made):
    config = made('''
from trl import SFTConfig, SFTTrainer
from peft import LoraConfig
model_id = "me/model"
model = AutoModelForCausalLM.from_pretrained(model_id, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
rows = load_dataset("json", data_files="rows.jsonl", split="train")
SFTTrainer(model, SFTConfig("out", max_length=512), train_dataset=rows, peft_config=LoraConfig(r=8, lora_alpha=8))
''', 'a.py')[1]
    assert (config.base_model, config.adapter, config.lora_r, config.sequence_len) == ('me/model', 'qlora', 8, 512)
    assert (config.datasets[0].path, config.lora_target_modules) == ('rows.jsonl', ['q_proj', 'v_proj'])


@pytest.mark.parametrize('text, name, part', [
    ('x = (', 'a.py', 'a.py:1: this is not Python'), ('print(1)', 'a.py', 'no call of `from_pretrained`'),
    ('{', 'a.ipynb', 'not a Jupyter notebook'), ('{"cells": 3}', 'a.ipynb', 'not a Jupyter notebook'),
    ('[]', 'a.ipynb', 'not a Jupyter notebook'), ('trainer = DPOTrainer(model)', 'a.py', 'trl dpo'),
    ('(' * 500, 'a.py', 'not Python'), ('a\0b', 'a.py', 'not Python')])
def test_notebooks_that_cannot_be_read(text, name, part, made):
    with pytest.raises(UserError, match=part): made(text, name)


def test_first_call_holds():
    values, program, _ = python_settings(SCRIPT, 'a.py')
    assert (values['max_seq_length'], program) == (1024, 'Unsloth')
    assert 'token' not in values
