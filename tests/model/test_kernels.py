"FlashAttention of each version and from the Hub, Liger and the compiler: what runs where, and what is said."
import json, subprocess, sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from transformers import BloomConfig, LlamaConfig

from llmft.config.config import load_config, save_config
from llmft.core import UserError
from llmft.memory.plan import plan_memory
from llmft.model.adapters import add_adapter
from llmft.model.architectures import supported_attention
from llmft.model.base import choose_attention, choose_batch_layout, detect_hardware, load_base
from llmft.model.kernels import (
    FLASH_KERNELS, check_compile, check_liger, choose_liger, comes_from_hub, compile_layers,
    without_compiled_layers)
from llmft.tokens.report import prepare_data
from llmft.training.arguments import check_training_options
from llmft.training.train import Collator, finetune, make_collator
from tests.small import small_config

HUB = [name for name in FLASH_KERNELS if comes_from_hub(name)]


@pytest.fixture
def config(tmp_path):
    usual = {'sample_prompts': 0, 'leakage': 'keep', 'logging_steps': 1}
    def config(**keys): return small_config(tmp_path, **usual | keys)
    return config


# FlashAttention

@pytest.mark.parametrize('kernel', FLASH_KERNELS)
def test_each_flash_kernel(kernel):
    oldest = FLASH_KERNELS[kernel][1]
    def choose(capability, dtype=torch.bfloat16, installed=True, device='cuda'):
        return choose_attention(device, capability, kernel, dtype, LlamaConfig(), installed)
    chosen, why = choose(oldest)
    assert chosen == kernel and ('comes from the Hub' in why) == (kernel in HUB)
    for wrong, missing in [(dict(capability=(7, 5)), 'compute capability'),
                           (dict(capability=None, device='cpu'), 'GPU'),
                           (dict(capability=oldest, installed=False), 'the package '),
                           (dict(capability=oldest, dtype=torch.float32), 'bfloat16 or float16')]:
        chosen, why = choose(**wrong)
        assert chosen == 'sdpa' and f'`{kernel}` needs' in why and missing in why and 'same numbers' in why
    assert choose_batch_layout(kernel)[0] == 'all in one line'
    class Tokenizer: pad_token_id = 0
    assert not isinstance(make_collator(Tokenizer, kernel, packed=True), Collator)
    assert isinstance(make_collator(Tokenizer, kernel, packed=False), Collator)


def test_auto_takes_flash_attention_3_on_hopper_only():
    def auto(capability, installed):
        return choose_attention('cuda', capability, 'auto', torch.bfloat16, None, installed)
    assert auto((9, 0), True)[0] == 'flash_attention_3' and 'flash-attn-3 is installed' in auto((9, 0), True)[1]
    for capability in ((8, 0), (8, 9), (10, 0), (12, 0)): assert auto(capability, True)[0] == 'flash_attention_2'
    for capability in ((8, 0), (9, 0)): assert auto(capability, False)[0] == 'sdpa' # nothing is downloaded


@pytest.mark.parametrize('kernel', FLASH_KERNELS)
def test_a_model_without_flash_attention(kernel):
    chosen, why = choose_attention('cuda', (9, 0), kernel, torch.bfloat16, BloomConfig(), True)
    assert chosen == 'eager' and f'no `{kernel}`' in why


def test_a_model_that_names_its_kernels():
    from transformers.models.granite_swa.modeling_granite_swa import GraniteSWAConfig, GraniteSWAPreTrainedModel
    named = {*GraniteSWAPreTrainedModel._compatible_flash_implementations}
    assert supported_attention(GraniteSWAConfig()) & {*FLASH_KERNELS} == named & {*FLASH_KERNELS}


@pytest.mark.parametrize('kernel', ['flash_attention_3', *HUB])
def test_a_run_on_a_cpu_goes_on_without(kernel, config):
    c = config(attn_implementation=kernel)
    hw = detect_hardware(c)
    assert hw.attention == 'sdpa' and f'`{kernel}` needs an NVIDIA GPU' in str(hw)
    assert finetune(c, say=None).last('loss')


def test_a_plan_knows_them(config):
    gpu = {'A100 40GB': True, 'T4': False}
    for kernel in ('flash_attention_3', HUB[0]):
        c = config(attn_implementation=kernel, sample_packing=True, sequence_len=256, micro_batch_size=4)
        two = config(attn_implementation='flash_attention_2', sample_packing=True, sequence_len=256, micro_batch_size=4)
        for name in gpu: assert plan_memory(c, name).peak_bytes == plan_memory(two, name).peak_bytes


def test_a_kernel_that_is_not_known(config):
    with pytest.raises(UserError, match='attn_implementation.*flash_attention_3'):
        config(attn_implementation='flash_attention_5')
    for name in ('somebody/flash-attn2', 'kernels-community/paged-attention'): # no code of others, and it is said
        c = config(attn_implementation=name)
        assert c.attn_implementation == 'flash_attention_2'
        assert any(f'`attn_implementation: {name}`' in note for note in c.notes)


# Liger

@pytest.mark.parametrize('options, message', [
    ({'swigl': True}, 'Did you mean `swiglu`'), ({'fused_linear_cross_entropy': True}, 'a piece at a time'),
    ({'cross_entropy': True}, 'a piece at a time'), ({'nope': False}, 'Liger has no `nope`')])
def test_wrong_parts_of_liger(options, message, config):
    with pytest.raises(UserError, match=message): check_training_options(config(liger_kernel_config=options))


def test_liger_without_its_package(config):
    if find_spec('liger_kernel'): return
    with pytest.raises(UserError, match='pip install liger-kernel'): check_liger(config(use_liger_kernel=True), 'cuda')


def test_liger_where_it_does_not_run(config):
    "The run goes on without it, and the settings say so."
    c = config(use_liger_kernel=True, liger_kernel_config={'rope': False, 'cross_entropy': False})
    hw = detect_hardware(c)
    if hw.device == 'cuda': return
    assert not hw.liger and "Liger's kernels: off, because Liger's kernels need an NVIDIA GPU" in str(hw)
    said = []
    assert finetune(c, say=said.append).last('loss')
    assert any("Liger's kernels: off" in str(line) for line in said)


def test_liger_for_the_architectures_of_its_table(monkeypatch):
    from llmft.model import kernels
    monkeypatch.setattr(kernels, '_liger_architectures', lambda: {'llama', 'qwen3'})
    assert choose_liger('cuda', True, LlamaConfig())[0]
    assert choose_liger('cuda', True, BloomConfig()) == (False, 'Liger has none for `bloom`')
    assert choose_liger('cuda', False, LlamaConfig()) == (False, None)
    for device in ('cpu', 'mps'): assert 'NVIDIA' in choose_liger(device, True, LlamaConfig())[1]
    def no_triton(): raise ImportError('No module named triton')
    monkeypatch.setattr(kernels, '_liger_architectures', no_triton)
    assert 'No module named triton' in choose_liger('cuda', True, LlamaConfig())[1]


@pytest.mark.gpu
@pytest.mark.parametrize('keys', [dict(), dict(sample_packing=True), dict(gradient_accumulation_steps=2)], ids=str)
def test_liger_computes_the_same(keys, config):
    pytest.importorskip('liger_kernel')
    def losses(out, **more):
        run = finetune(config(max_steps=3, output_dir=str(out), bf16=False, **keys, **more), say=None)
        return [m[key] for m in run.metrics for key in ('loss', 'eval_loss') if key in m]
    with_it = losses(Path(config().output_dir)/'../with', use_liger_kernel=True)
    assert with_it == pytest.approx(losses(Path(config().output_dir)/'../without'), rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize('adapter', ['lora', 'qlora'])
@pytest.mark.parametrize('key', ['torch_compile', 'label_smoothing_factor'])
def test_on_a_gpu_as_on_a_cpu(key, adapter, config, monkeypatch):
    "Compiled layers give the losses of plain ones; the smoothed loss is that of the CPU."
    def losses(out, **more):
        run = finetune(config(max_steps=3, output_dir=str(out), adapter=adapter, bf16=False, **more), say=None)
        return [m[key] for m in run.metrics for key in ('loss', 'eval_loss') if key in m]
    parent, value = Path(config().output_dir).parent, True if key == 'torch_compile' else .1
    gpu = losses(parent/'gpu', **{key: value})
    if key == 'torch_compile': expected = losses(parent/'plain')
    else:
        monkeypatch.setattr('torch.cuda.is_available', lambda: False)
        expected = losses(parent/'cpu', **{key: value})
    assert gpu == pytest.approx(expected, rel=5e-3)


# the compiler

@pytest.mark.parametrize('keys, message', [
    (dict(torch_compile_backend='inducto'), 'Did you mean `inductor`'),
    (dict(torch_compile_mode='max'), 'none called `max`'),
    (dict(torch_compile_backend='eager', torch_compile_mode='max-autotune'), 'torch_compile_mode')])
def test_wrong_compiler(keys, message, config):
    with pytest.raises(UserError, match=message): check_training_options(config(torch_compile=True, **keys))


def test_no_compiler_on_this_machine(config, monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, 'cxx', (None, 'no-such-compiler'))
    with pytest.raises(UserError, match=r'torch_compile: it needs a C\+\+ compiler.* Install it, or remove the key'):
        check_compile(config(torch_compile=True), 'cpu')
    check_compile(config(torch_compile=True, torch_compile_backend='eager'), 'cpu')
    check_compile(config(), 'cpu')
    with pytest.raises(UserError, match='an NVIDIA GPU or a CPU'): check_compile(config(torch_compile=True), 'mps')


def test_compiled_layers_in_a_trainer(config):
    "`eager` traces as the compiler does and computes as PyTorch."
    from llmft.training.train import make_trainer
    c = config(max_steps=2, eval_strategy='no', save_strategy='no', gradient_checkpointing=True)
    data = prepare_data(c)
    def steps(c):
        trainer = make_trainer(c, add_adapter(load_base(c), c), data, c.output_dir)
        trainer.train()
        return [line['loss'] for line in trainer.state.log_history if 'loss' in line], [*trainer.model.state_dict()]
    torch._dynamo.utils.counters.clear()
    compiled, names = steps(load_config(c, torch_compile=True, torch_compile_backend='eager'))
    plain, names_without = steps(c)
    assert compiled == pytest.approx(plain, rel=1e-4) and names == names_without
    assert not torch._dynamo.utils.counters['graph_break']
    assert 1 <= torch._dynamo.utils.counters['stats']['unique_graphs'] <= 2 # of two layers, two lengths


LOSSES = '''
import json, sys
from llmft.config.config import load_config
from llmft.training.train import finetune
import torch
run = finetune(load_config(sys.argv[1], **json.loads(sys.argv[2])), say=None)
stats = torch._dynamo.utils.counters
print(json.dumps([[m[key] for m in run.metrics for key in ('loss', 'eval_loss') if key in m],
                  stats['stats']['unique_graphs'], len(stats['graph_break'])]))
'''


@pytest.fixture(scope='module')
def losses(tmp_path_factory):
    folder = tmp_path_factory.mktemp('compiled')
    common = dict(max_steps=5, sample_prompts=1, max_new_tokens=4, leakage='keep', logging_steps=1, eval_steps=3,
                  gradient_checkpointing=True, save_steps=2, save_total_limit=9)
    base = small_config(folder, **common)
    save_config(base, folder/'run.yml')
    def losses(out, **keys):
        "Of a run in a process of its own; and how many graphs were compiled, and breaks in them."
        args = [str(folder/'run.yml'), json.dumps(keys | {'output_dir': str(folder/out)})]
        done = subprocess.run([sys.executable, '-c', LOSSES, *args], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])
    losses.folder = folder
    return losses


QLORA_PACKED = dict(adapter='qlora', load_in_4bit=True, sample_packing=True)


@pytest.mark.slow
@pytest.mark.parametrize('keys', [
    dict(adapter='lora'), dict(adapter='full', sample_packing=True), QLORA_PACKED,
    dict(adapter='lora', lora_dropout=.1, gradient_checkpointing=False)], ids=str)
def test_compiled_layers_learn_the_same(keys, losses):
    "`eager` traces as the compiler does and computes as PyTorch; no graph for each length."
    name = '-'.join(map(str, keys.values()))
    plain, n_graphs, _ = losses(f'plain-{name}', **keys)
    compiled, n_graphs, n_breaks = losses(f'compiled-{name}', torch_compile=True, torch_compile_backend='eager', **keys)
    assert compiled == pytest.approx(plain, rel=1e-4) and 1 <= n_graphs <= 8 and not n_breaks
    for part in ('adapter', 'model'):
        for file in (losses.folder/f'compiled-{name}'/part).glob('*.safetensors'):
            from safetensors import safe_open
            with safe_open(file, 'pt') as weights: assert not any('_orig_mod' in key for key in weights.keys())


@pytest.mark.slow
@pytest.mark.parametrize('keys', [dict(adapter='lora'), QLORA_PACKED], ids=str)
def test_the_real_compiler(keys, losses):
    name = f'{keys["adapter"]}'
    plain, *_ = losses(f'plainly-{name}', **keys)
    compiled, n_graphs, _ = losses(f'really-{name}', torch_compile=True, **keys)
    assert compiled == pytest.approx(plain, rel=1e-4) and n_graphs


def test_no_graphs_are_made_for_answers(config):
    c = config(torch_compile=True, torch_compile_backend='eager')
    model = add_adapter(load_base(c), c)
    compile_layers(model, c)
    ids = torch.arange(5, 13)[None]
    with without_compiled_layers():
        before = torch._dynamo.utils.counters['stats']['unique_graphs']
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False)
        assert torch._dynamo.utils.counters['stats']['unique_graphs'] == before
