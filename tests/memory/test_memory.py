"The memory plan against the same step really run, bad input, and (with a GPU) against what CUDA reports."
import contextlib, functools, io, json, time
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig, Trainer, TrainingArguments
from llmft.commands.check import init_empty_model
from llmft.commands.cli import main
from llmft.config.config import dump_yaml, load_config
from llmft.core import UserError
from llmft.memory.dryrun import (
    StorageTracker, _register_bnb_overrides, checkpoint_contexts, memory_peaks, model_tensors, quantize_layers,
    training_step)
from llmft.memory.fit import fit_to_gpu
from llmft.memory.plan import attention_for, check_fits, dry_run, plan_memory
from llmft.model.adapters import add_adapter
from llmft.model.attention import take_texts_apart, text_lengths, texts_apart
from llmft.model.base import load_base, load_hf_config
from llmft.model.fused import fuse_adapters
from llmft.model.gpus import GiB, find_gpu, find_machine, known_gpus
from llmft.model.loss import chunked_cross_entropy, has_plain_lm_head
from llmft.tokens.tokenize import load_tokenizer
from llmft.training.train import Collator, finetune, make_trainer
from tests.tiny import alpaca_rows, save_rows, save_tiny

SIZES = dict(
    vocab_size=1000, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=16, max_position_embeddings=2048, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    tie_word_embeddings=False)
LLAMA = dict(SIZES, model_type='llama')
KINDS = {
    'llama': {}, 'mistral': {}, 'qwen2': {}, 'qwen3': {}, 'gemma3_text': {}, 'phi3': {}, 'gpt_neox': {},
    'mixtral': dict(num_local_experts=4)}
CODE_LLAMA = dict(
    model_type='llama', vocab_size=32016, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32,
    num_attention_heads=32, max_position_embeddings=16384, rope_theta=1e6, tie_word_embeddings=False)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    "Folders with models of random weights, made when they are asked for."
    root = tmp_path_factory.mktemp('models')
    def folder(kind):
        if not (root/kind).exists():
            hf_config = AutoConfig.for_model(kind, **SIZES, **KINDS[kind])
            AutoModelForCausalLM.from_config(hf_config).save_pretrained(root/kind)
        return root/kind
    return folder


def run_config(folder, **options):
    return load_config({
        'base_model': str(folder), 'datasets': [{'path': 'rows.jsonl'}], 'adapter': 'lora', 'bf16': False, 'lora_r': 8,
        'micro_batch_size': 2, 'sequence_len': 64} | options)


def full_row(config, one_line=True):
    "A row of `sequence_len` tokens, all of them learned; packed in a line of its own: of two texts, which need a mask."
    n = config.sequence_len
    texts = {'seq_lengths': [n] if one_line else [n//2, n//2]} if config.sample_packing else {}
    return {'input_ids': [5]*n, 'labels': [5]*n} | texts


def optimizer_of(config, params):
    "The optimizer that transformers makes."
    args = TrainingArguments(optim=config.optimizer, report_to='none', use_cpu=True)
    cls, kwargs = Trainer.get_optimizer_cls_and_kwargs(args)
    return cls(params, **kwargs)


def step_as_trained(model, config, tracker, loss, params, amp=contextlib.nullcontext, **options):
    "A step with attention, adapters and rows as `make_trainer` has them; every token is learned, as the plan supposes."
    one_line = take_texts_apart(model)
    with amp(): fuse_adapters(model)
    batch = Collator(0, one_line=one_line)([full_row(config, one_line)]*config.micro_batch_size)
    batch['labels'] = batch['input_ids'].clone()
    for t in batch.values(): tracker.track(t, 'activations')
    with texts_apart(text_lengths(batch['position_ids'])):
        training_step(model.train(), batch, loss, optimizer_of(config, params), tracker, amp, **options)


def real_step(config, **options):
    "The step that llmft takes: its model, its adapter, its rows, its loss, the optimizer of transformers; watched."
    tracker, model = StorageTracker(), load_base(config)
    for t in model_tensors(model): tracker.track(t, 'weights')
    with tracker: model = add_adapter(model, config)
    params = [p for p in model.parameters() if p.requires_grad]
    for p in params: tracker.track(p, 'adapter')
    if config.gradient_checkpointing:
        model.enable_input_require_grads()
        contexts = functools.partial(checkpoint_contexts, tracker)
        model.gradient_checkpointing_enable({'use_reentrant': False, 'context_fn': contexts})
    assert has_plain_lm_head(model.config)
    step_as_trained(model, config, tracker, chunked_cross_entropy, params,
        accumulate=config.gradient_accumulation_steps > 1, **options)
    return memory_peaks(tracker)


def compare(config, **options):
    _register_bnb_overrides()
    real = real_step(config, **options)
    plan = memory_peaks(dry_run(config, load_hf_config(config), find_gpu('CPU'))[0])
    peak = max(size for size, *_ in real.values())
    assert abs(max(size for size, *_ in plan.values()) - peak) < .01*peak
    for step in ('start', 'forward', 'backward', 'optimizer', 'end'): assert plan[step][2] == real[step][2], step
    return real


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('rows,length', [(2, 64), (1, 1280)])
@pytest.mark.parametrize('kind', KINDS)
def test_plan_is_the_real_step(folders, kind, rows, length, checkpointing):
    real = compare(run_config(
        folders(kind), micro_batch_size=rows, sequence_len=length, gradient_checkpointing=checkpointing))
    assert real['backward'][2]['activations']
    assert real['optimizer'][2]['optimizer'] and real['optimizer'][2]['gradients']


@pytest.mark.parametrize('options', [
    dict(adapter='qlora'), dict(load_in_8bit=True), dict(optimizer='adamw_bnb_8bit', lora_r=64), dict(optimizer='sgd'),
    dict(sample_packing=False), dict(gradient_accumulation_steps=4), dict(lora_dropout=.1),
    dict(lora_target_modules=['q_proj'], lora_modules_to_save=['lm_head'])], ids=str)
def test_plan_is_the_real_step_with_other_settings(folders, options): compare(run_config(folders('llama'), **options))


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('kind,options', [
    ('llama', dict(adapter='full')), ('gpt_neox', dict(adapter='full', optimizer='adafactor')),
    ('llama', dict(load_in_8bit=True)), ('llama', dict(peft_use_dora=True)),
    ('llama', dict(peft_use_dora=True, adapter='qlora')), ('qwen3', dict(peft_init_lora_weights='pissa')),
    ('llama', dict(peft_trainable_token_indices=[1, 2, 3])), ('llama', dict(loraplus_lr_ratio=16.)),
    ('mixtral', dict(lora_target_parameters=['mlp.experts.gate_up_proj']))], ids=str)
def test_plan_is_the_real_step_for_each_kind_of_adapter(folders, kind, options, checkpointing):
    compare(run_config(folders(kind), gradient_checkpointing=checkpointing, **options))


def test_a_saved_adapter(folders, tmp_path):
    config = run_config(folders('llama'))
    add_adapter(load_base(config), config).save_pretrained(tmp_path/'adapter')
    def continued(folder): return run_config(folder, lora_model_dir=str(tmp_path/'adapter'))
    compare(continued(folders('llama')))
    with pytest.raises(UserError, match='was trained on .*llama, not on'):
        plan_memory(continued(folders('mistral')), 'T4')
    other = tmp_path/'llama'
    other.mkdir()
    (other/'config.json').write_text(json.dumps(dict(SIZES, model_type='llama', hidden_size=128)), encoding='utf-8')
    with pytest.raises(UserError, match='belongs to another base model'): plan_memory(continued(other), 'T4')


def test_full_fine_tuning_keeps_sixteen_bytes_for_each_weight():
    config = load_config('code-llama-7b', adapter='full', load_in_4bit=False, optimizer='adamw_torch')
    plan = plan_memory(config, 'H200', CODE_LLAMA)
    assert plan.parts['adapter'] == plan.parts['gradients'] == pytest.approx(4*6_738_546_688, rel=1e-3)
    assert plan.between_steps['optimizer'] == pytest.approx(8*6_738_546_688, rel=1e-3)
    assert plan.parts['weights'] < 2**20 and not plan.fits('A100-80GB') # only tables that are never trained


@pytest.mark.parametrize('checkpointing', [False, True])
@pytest.mark.parametrize('length', [256, 640]) # one chunk of the loss, and two
# models without `layer_norm`, which the CPU's autocast leaves in 16 bits and CUDA's does not
@pytest.mark.parametrize('kind', ['llama', 'qwen3', 'gemma3_text'])
def test_plan_is_the_real_step_in_two_formats(folders, kind, length, checkpointing):
    config = run_config(folders(kind), bf16=True, sequence_len=length, gradient_checkpointing=checkpointing)
    compare(config, amp=functools.partial(torch.autocast, 'cpu', torch.bfloat16))


def test_code_llama_takes_seconds():
    start = time.process_time()
    plan = plan_memory('code-llama-7b', 'T4', CODE_LLAMA)
    assert time.process_time() - start < 10
    assert plan.fits() and plan.fits('RTX 3070') and not plan.fits('5GiB')
    # NF4 weights and a 32-bit adapter of rank 32
    assert 3.8*GiB < plan.between_steps['weights'] + plan.between_steps['adapter'] < 4*GiB
    assert plan.peak_bytes == sum(plan.parts.values())
    assert plan.peak_step == 'backward' and 'layers.31' in plan.peak_module
    assert 'it fits' in str(plan) and '| weights |' in plan._repr_markdown_()


@pytest.mark.slow
def test_half_precision_weights_and_more_rows_cost_what_they_must():
    def plan(**options): return plan_memory(load_config('code-llama-7b', **options), 'A100-80GB', CODE_LLAMA)
    four, sixteen, ten = plan(), plan(adapter='lora', load_in_4bit=False), plan(micro_batch_size=10)
    assert sixteen.parts['weights'] == pytest.approx(2*6_738_546_688, rel=1e-4)
    assert ten.parts['weights'] == four.parts['weights']
    assert 8 < ten.parts['activations']/four.parts['activations'] < 12
    plain = plan(gradient_checkpointing=False)
    assert plain.parts['activations'] > 5*four.parts['activations']


def test_fit_keeps_the_rows_that_learn_together():
    guide = load_config('code-llama-7b', micro_batch_size=10, gradient_accumulation_steps=1, eval_batch_size=10)
    lines = []
    assert not plan_memory(guide, 'T4', CODE_LLAMA).fits()
    fitted = fit_to_gpu(guide, 'T4', CODE_LLAMA, say=lines.append)
    assert plan_memory(fitted, 'T4', CODE_LLAMA).fits()
    assert fitted.micro_batch_size*fitted.gradient_accumulation_steps == 10
    assert fitted.sequence_len == guide.sequence_len
    changed = [key for key, value in fitted if value != getattr(guide, key)]
    assert [line.split(':')[0] for line in lines] == changed and all(line.count(': ') >= 2 for line in lines)
    with pytest.raises(UserError, match='Nothing makes this run fit on 3GiB'):
        fit_to_gpu(load_config(guide, sequence_len=128, micro_batch_size=1), '3GiB', CODE_LLAMA)


@pytest.mark.slow
def test_shorter_rows_are_the_last_resort():
    lines, tight = [], load_config('code-llama-7b', gradient_accumulation_steps=1, sequence_len=4096)
    fitted = fit_to_gpu(tight, '5.5GiB', CODE_LLAMA, say=lines.append)
    assert fitted.sequence_len < 4096 and any('LAST RESORT' in line for line in lines)


@pytest.mark.parametrize('name,expected', [
    ('T4', 'T4'), ('Tesla T4', 'T4'), ('nvidia rtx 4090', 'RTX 4090'), ('a100', 'A100-40GB'),
    ('A100 80GB', 'A100-80GB'), ('mps', 'Apple')])
def test_gpu_names(name, expected): assert find_gpu(name).name == expected


def test_gpu_sizes():
    assert find_gpu('15GiB').memory == 15*GiB and find_gpu('16 GB').memory == 16*10**9 and find_gpu('8xH100').count == 8
    names = {'T4', 'P100', 'V100-16GB', 'L4', 'A10G', 'RTX 3060', 'RTX 5090', 'A100-40GB', 'A100-80GB', 'H100', 'H200'}
    assert names | {'2xT4', 'Apple', 'CPU'} <= {*known_gpus()}


MINIMAL = {'base_model': 'x', 'datasets': [{'path': 'x'}]}
@pytest.mark.parametrize('call,message', [
    (lambda: find_gpu('RTX 4900'), 'Did you mean `RTX 4090`'),
    (lambda: find_gpu('0GiB'), 'must be above 0'),
    (lambda: find_machine('kagle'), 'Did you mean `kaggle`'),
    (lambda: plan_memory('code-llama-7b', 'T4', dict(CODE_LLAMA, model_type='lama')),
        'does not know the architecture `lama`. Did you mean `llama`'),
    (lambda: plan_memory('code-llama-7b', 'T4', {}), 'has no `model_type`'),
    (lambda: plan_memory('code-llama-7b', 'T4', {k: v for k, v in CODE_LLAMA.items() if k != 'vocab_size'}),
        'has no `vocab_size`'),
    (lambda: plan_memory('code-llama-7b', 'T4', dict(CODE_LLAMA, hidden_size='big')),
        'config.json cannot be used|cannot be planned'),
    (lambda: plan_memory(MINIMAL | {'sequence_len': -5}, 'T4', CODE_LLAMA), '`sequence_len` must be at least 8'),
    (lambda: plan_memory(MINIMAL | {'base_model': './nowhere/model'}, 'T4'), 'there is no folder'),
    (lambda: plan_memory(MINIMAL | {'lora_target_modules': ['nothing']}, 'T4', LLAMA),
        'no layer called `nothing`'),
])
def test_bad_input(call, message):
    with pytest.raises(UserError, match=message): call()


def test_4bit_needs_linear_layers():
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4))
    model.get_output_embeddings = lambda: None
    with pytest.raises(UserError, match='no linear layers'):
        quantize_layers(model, BitsAndBytesConfig(load_in_4bit=True))


def test_a_folder_needs_no_weights(tmp_path):
    (tmp_path/'config.json').write_text(json.dumps(LLAMA), encoding='utf-8')
    assert plan_memory(run_config(tmp_path), 'L4').fits()
    assert attention_for(run_config(tmp_path), load_hf_config(run_config(tmp_path))) == 'sdpa'


def test_the_plan_and_the_check_see_the_changes_of_the_shape(tmp_path):
    (tmp_path/'config.json').write_text(json.dumps(LLAMA), encoding='utf-8')
    original = run_config('builtin/smollm2-135m')
    shorter = run_config('builtin/smollm2-135m', overrides_of_model_config={'num_hidden_layers': 3})
    other = run_config('builtin/smollm2-135m', base_model_config=str(tmp_path))
    configs = original, shorter, other
    weights = [sum(p.numel() for p in init_empty_model(config).parameters()) for config in configs]
    planned = [plan_memory(config, 'T4').parts['weights'] for config in configs]
    assert weights[0] > weights[1] > weights[2]
    assert planned == [pytest.approx(4*n, rel=1e-2) for n in weights] # in 32 bits, with a few buffers
    with pytest.raises(UserError, match='changed by `overrides_of_model_config`, cannot be used'):
        load_hf_config(run_config(tmp_path, overrides_of_model_config={'hidden_size': 'wide'}))


def test_what_the_cache_of_the_hub_has_is_not_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    def download(): return plan_memory(config, 'T4', LLAMA).disk['download']
    config, files = run_config('owner/name'), tmp_path/'models--owner--name'/'snapshots'/'c0ffee'
    everything = download()
    for folder in (files, files.parents[1]/'refs'): folder.mkdir(parents=True)
    (files.parents[1]/'refs'/'main').write_text('c0ffee')
    (files/'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'a': 'one', 'b': 'two', 'c': 'two'}}))
    assert download() == everything > 0
    (files/'one').touch()
    assert download() == everything/2
    (files/'two').touch()
    assert download() == 0


def trainer_of(config, folder):
    "The trainer of a run, with full rows in which every token is learned."
    rows = [full_row(config)]*(3*config.micro_batch_size*config.gradient_accumulation_steps)
    data = SimpleNamespace(
        tokenizer=load_tokenizer(config), train=Dataset.from_list(rows), heldout=None, stream=None)
    return make_trainer(config, add_adapter(load_base(config), config), data, folder)


def small_run(**options):
    defaults = {'bf16': 'auto', 'micro_batch_size': 4, 'sequence_len': 1024, 'lora_r': 16, 'max_steps': 3}
    return run_config('builtin/smollm2-135m', **(defaults | options))


def test_the_trainer_that_is_measured(tmp_path): # so that the checks for a GPU are known to run
    config = small_run(base_model=str(save_tiny(tmp_path/'model')), micro_batch_size=1, sequence_len=32, max_steps=1,
                       gradient_checkpointing=False)
    trainer = trainer_of(config, tmp_path)
    trainer.train()
    assert trainer.state.global_step == 1
    assert {p.dtype for p in trainer.model.parameters() if p.requires_grad} == {torch.float32}


ON_CUDA = [
    dict(), dict(adapter='qlora'), dict(load_in_8bit=True), dict(adapter='full'), dict(peft_use_dora=True),
    dict(gradient_checkpointing=False), dict(adapter='qlora', gradient_checkpointing=False), dict(sample_packing=False),
    dict(optimizer='paged_adamw_32bit', lora_r=64), dict(optimizer='adamw_bnb_8bit', lora_r=64),
    dict(bf16=False, fp16=True), dict(bf16=False), dict(micro_batch_size=1, sequence_len=4096),
    dict(micro_batch_size=16, sequence_len=256), dict(gradient_accumulation_steps=4)]
ERRORS = {} # settings -> the plan's relative error, against what was measured


@pytest.mark.gpu
@pytest.mark.parametrize('options', ON_CUDA, ids=str)
def test_against_cuda(options, tmp_path):
    "What PyTorch allocates on the GPU in real steps of the built-in model; the comparison goes to benchmarks/results."
    config = small_run(**options)
    plan, (free, _) = plan_memory(config), torch.cuda.mem_get_info()
    trainer = trainer_of(config, tmp_path)
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    assumed = {part: plan.parts[part] for part in ('CUDA', 'allocator')}
    real, planned = torch.cuda.max_memory_allocated(), plan.peak_bytes - sum(assumed.values())
    ERRORS[str(options)] = abs(planned - real)/real
    record = dict(
        settings=options, planned=planned, allocated=real, reserved=torch.cuda.max_memory_reserved(),
        in_use=free - torch.cuda.mem_get_info()[0], assumed=assumed, torch=torch.__version__)
    gpu = torch.cuda.get_device_name().replace(' ', '-')
    out = Path(__file__).parents[2]/'benchmarks'/'results'/f'memory-{gpu}.jsonl'
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(out, 'a', encoding='utf-8') as f: f.write(json.dumps(record) + '\n')
    assert ERRORS[str(options)] < .05


@pytest.mark.gpu
def test_against_cuda_in_the_middle():
    if len(ERRORS) < 12: pytest.skip('needs the measurements of `test_against_cuda`')
    assert sorted(ERRORS.values())[len(ERRORS)//2] < .02


@pytest.fixture
def run_file(tmp_path):
    "A YAML for a model of which there is only a `config.json`."
    def write(hf_config=LLAMA, **options):
        (tmp_path/'model').mkdir()
        (tmp_path/'model'/'config.json').write_text(json.dumps(hf_config), encoding='utf-8')
        keys = dict(base_model=str(tmp_path/'model'), datasets=[dict(path='rows.jsonl')], sequence_len=64) | options
        (tmp_path/'run.yml').write_text(dump_yaml(keys), encoding='utf-8')
        return str(tmp_path/'run.yml')
    return write


def plan_command(*args):
    "Standard output of `llmft plan`, or where it fails its error; and the exit status."
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try: main(['plan', *args])
        except SystemExit as e: return (err if e.code else out).getvalue(), e.code or 0


def test_plan_command(run_file, tmp_path):
    text, status = plan_command(run_file(), '--gpu', 'T4')
    assert status == 0 and 'of T4 (14.6 GiB): it fits' in text
    for row in ('weights', 'adapter', 'activations', 'CUDA', 'GPU', 'RAM', 'disk: download', 'disk: run folder'):
        assert f'\n  {row} ' in text
    assert '(Kaggle)' in text and '(Colab)' in text
    assert {p.name for p in tmp_path.iterdir()} == {'model', 'run.yml'} # nothing was written


def test_plan_command_fits(run_file, tmp_path):
    file = run_file(micro_batch_size=64, sequence_len=2048, test_datasets=[dict(path='more.jsonl')])
    text, status = plan_command(file, '--gpu', '1GiB', '--fit')
    assert status == 0 and 'micro_batch_size: 64 -> ' in text and 'it fits' in text
    assert {p.name for p in tmp_path.iterdir()} == {'model', 'run.yml'}
    text, status = plan_command(file, '--gpu', '1GiB', '--fit', '--out', str(tmp_path/'fits.yml'))
    fitted = load_config(tmp_path/'fits.yml')
    assert status == 0 and fitted.micro_batch_size*fitted.gradient_accumulation_steps == 64
    assert plan_memory(fitted, '1GiB').fits()
    assert 'exists already' in plan_command(file, '--gpu', '1GiB', '--fit', '--out', str(tmp_path/'fits.yml'))[0]


@pytest.mark.parametrize('hf_config,args,message', [
    (dict(SIZES, model_type='lama'), [], 'does not know the architecture `lama`. Did you mean `llama`?'),
    ({k: v for k, v in LLAMA.items() if k != 'vocab_size'}, [], 'no `vocab_size`'),
    (LLAMA, ['--set', 'sequence_len=-5'], '`sequence_len` must be at least 8'),
    (LLAMA, ['--gpu', 'T5'], 'Did you mean `T4`?'),
    (LLAMA, ['--gpu', 'RTX4900'], 'Did you mean `RTX 4090`?'),
    (LLAMA, ['--place', 'colaab'], 'Did you mean `colab`?'),
    (LLAMA, ['--set', 'lora_target_modules=[qproj]'], 'no layer called `qproj`. Did you mean `q_proj`?'),
    (LLAMA, ['--set', 'lora_target_modules=xx.*'], 'no layer has a name that fits'),
    (LLAMA, ['--set', 'lora_r=0'], '`lora_r` must be above 0'),
    (LLAMA, ['--set', 'optimizer=lomo'], 'in the middle of the backward pass'),
    (LLAMA, ['--set', 'optimizer=adamw_toch'], 'Did you mean `adamw_torch`?'),
], ids=lambda v: ' '.join(v) if isinstance(v, list) else '')
def test_plan_command_bad_input(hf_config, args, message, run_file):
    text, status = plan_command(run_file(hf_config), '--gpu', 'T4', *args)
    assert status == 2 and message in text and text.splitlines()[-1].startswith('Error: ') and 'Traceback' not in text


def test_train_stops_with_the_plan(run_file, monkeypatch, tmp_path):
    huge, rows = dict(LLAMA, vocab_size=2**24, hidden_size=4096), save_rows(tmp_path/'rows.jsonl', alpaca_rows(3))
    file = run_file(huge, adapter='lora', lora_modules_to_save=['lm_head'], datasets=[dict(path=rows)])
    with pytest.raises(UserError, match=r'does not fit on this machine \(RAM') as e: finetune(file)
    assert 'highest in the step' in str(e.value) and '--force' in str(e.value)
    monkeypatch.setattr('llmft.memory.plan.plan_memory', lambda config: 1/0)
    if not torch.cuda.is_available(): check_fits(load_config('smollm2-135m')) # it is not planned on a CPU
    with pytest.raises(UserError, match='has no weights'): finetune(file, force=True) # goes on to the model
