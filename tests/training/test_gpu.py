"""What only a GPU can show: the Code Llama recipe in full size, with random weights.

Run with `pytest tests/training/test_gpu.py`; it needs 20 GB of disk."""
import json, re
from pathlib import Path
import pytest, torch
from transformers import LlamaConfig, LlamaForCausalLM
from llmft.config.config import load_config
from llmft.model.adapters import add_adapter
from llmft.model.base import detect_hardware, load_base
from llmft.tokens.report import prepare_data
from llmft.training.train import finetune, make_trainer
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer, tiny_config

RESULTS = Path(__file__).parents[2]/'benchmarks'/'results'


def random_weight(name, shape):
    if 'norm' in name: return torch.ones(shape, dtype=torch.float16)
    return torch.empty(shape, dtype=torch.float16).normal_(std=.02)


def save_llama_7b(folder):
    "A Llama of 7 billion random weights in 16 bits, one file for each layer, so that never more than one is in memory."
    from safetensors.torch import save_file
    tokenizer = small_tokenizer()
    shape = LlamaConfig(
        vocab_size=32016, hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=32, max_position_embeddings=16384, tie_word_embeddings=False, dtype='float16',
        architectures=['LlamaForCausalLM'], bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id)
    folder.mkdir()
    shape.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with torch.device('meta'): skeleton = LlamaForCausalLM(shape)
    groups, index, total = {}, {}, 0
    for name, p in skeleton.state_dict().items():
        layer = re.search(r'layers\.(\d+)\.', name)
        groups.setdefault(layer[1] if layer else name, {})[name] = p.shape
    for i, shapes in enumerate(groups.values()):
        tensors, file = {name: random_weight(name, s) for name, s in shapes.items()}, f'model-{i:05}.safetensors'
        save_file(tensors, folder/file, metadata={'format': 'pt'})
        index |= {name: file for name in tensors}
        total += sum(t.nbytes for t in tensors.values())
    content = {'metadata': {'total_size': total}, 'weight_map': index}
    (folder/'model.safetensors.index.json').write_text(json.dumps(content))
    return folder


@pytest.mark.gpu
def test_code_llama_7b(tmp_path):
    model = save_llama_7b(tmp_path/'model')
    data = save_rows(tmp_path/'rows.jsonl', [r | {'output': r['output'] * 40} for r in alpaca_rows(2000)])
    config = load_config('code-llama-7b', base_model=str(model), datasets=[{'path': data, 'type': 'alpaca'}],
        output_dir=str(tmp_path/'run'), max_steps=30, evals_per_epoch=None)
    hw = detect_hardware(config)
    torch.cuda.reset_peak_memory_stats()
    run = finetune(config)
    clock = {m['step']: m['seconds'] for m in run.metrics if 'loss' in m}
    peak, seconds = torch.cuda.max_memory_reserved(), (clock[30] - clock[5]) / 25
    result = {
        'gpu': hw.name, 'dtype': str(hw.dtype), 'attention': hw.attention,
        'packed_tokens_per_step': config.sequence_len * config.gradient_accumulation_steps,
        'peak_memory_gib': round(peak / 2**30, 2), 'seconds_per_step': round(seconds, 2),
        'first_loss': run.first('loss'), 'last_loss': run.last('loss'), 'torch': torch.__version__,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = re.sub('[^A-Za-z0-9]+', '_', hw.name)
    (RESULTS/f'code_llama_7b_{name}.json').write_text(json.dumps(result, indent=1) + '\n')
    assert run.last('step') == 30 and run.last('loss') < run.first('loss')
    assert peak < 15 * 2**30 # a T4 has 15 GiB


@pytest.mark.gpu
@pytest.mark.parametrize('fp16', [False, True])
def test_float16_scales_the_loss(tmp_path, fp16):
    if not fp16 and torch.cuda.get_device_capability() >= (8, 0): pytest.skip('chosen by itself only on GPUs below 8.0')
    model, rows = save_tiny(tmp_path/'model'), save_rows(tmp_path/'rows.jsonl', alpaca_rows(60))
    config = tiny_config(model, rows, tmp_path/'run', max_steps=10, fp16=fp16, optimizer='paged_adamw_32bit')
    assert detect_hardware(config).dtype == torch.float16
    trainer = make_trainer(config, add_adapter(load_base(config), config), prepare_data(config), tmp_path/'checkpoints')
    def trained(): return {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
    before = trained()
    trainer.train()
    assert {p.dtype for p in trained().values()} == {torch.float32}
    scaler = trainer.accelerator.scaler
    assert scaler is not None and scaler.is_enabled() and scaler.get_scale() > 1
    assert all(not torch.equal(before[n], p) for n, p in trained().items() if 'lora_B' in n)
    assert all(p.isfinite().all() for p in trained().values())
