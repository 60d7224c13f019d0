"Memory while a model of a billion random weights, saved in 8 files, is loaded into 4 bits on the CPU."
import json, os, platform, resource, subprocess, sys, tempfile, time
from pathlib import Path

import torch

from llmft.config.config import load_config
from llmft.model.base import load_base

RESULTS = Path(__file__).parent/'results'
SHARDS = 8


def random_weight(name, shape):
    if 'norm' in name: return torch.ones(shape, dtype=torch.bfloat16)
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=.02)


def save_llama_1b(folder):
    "A Llama of 1.1 billion random weights in bfloat16, in 8 files; never more than one is in memory."
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM
    config = LlamaConfig(
        vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, tie_word_embeddings=False, dtype='bfloat16', architectures=['LlamaForCausalLM'])
    folder.mkdir()
    config.save_pretrained(folder)
    with torch.device('meta'): shapes = {name: p.shape for name, p in LlamaForCausalLM(config).state_dict().items()}
    total = 2 * sum(shape.numel() for shape in shapes.values()) # bytes
    shards, weight_map, n_bytes = [{} for _ in range(SHARDS)], {}, 0
    for name, shape in shapes.items():
        shards[min(SHARDS - 1, n_bytes * SHARDS // total)][name] = shape
        n_bytes += 2 * shape.numel()
    for i, shard in enumerate(shards):
        file = f'model-{i + 1:05}-of-{SHARDS:05}.safetensors'
        save_file({name: random_weight(name, shape) for name, shape in shard.items()}, folder/file, {'format': 'pt'})
        weight_map |= dict.fromkeys(shard, file)
    index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
    (folder/'model.safetensors.index.json').write_text(json.dumps(index))
    return total


def peak_rss(): # bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def four_bit_size(model): # bytes, with the scales of the quantized weights
    tensors = list(model.parameters())
    for module in model.modules():
        state = getattr(getattr(module, 'weight', None), 'quant_state', None)
        if state: tensors += [state.absmax, state.code, state.state2.absmax, state.state2.code]
    return sum(t.numel() * t.element_size() for t in tensors)


def load(folder): # in a process of its own
    import transformers, bitsandbytes, peft # what is in memory before
    before, start = peak_rss(), time.perf_counter()
    model = load_base(load_config({'base_model': folder, 'datasets': [{'path': 'x'}], 'bf16': True}))
    size = four_bit_size(model)
    seconds = round(time.perf_counter() - start, 1)
    print(json.dumps({'before': before, 'peak': peak_rss(), 'four_bit_size': size, 'seconds': seconds}))


def main():
    with tempfile.TemporaryDirectory() as tmp:
        total = save_llama_1b(Path(tmp)/'model')
        shard = max(f.stat().st_size for f in (Path(tmp)/'model').glob('*.safetensors'))
        command = [sys.executable, __file__, str(Path(tmp)/'model')]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = json.loads(out.splitlines()[-1]) | {
        'bfloat16_size': total, 'largest_shard': shard, 'shards': SHARDS, 'torch': torch.__version__,
        'python': platform.python_version(), 'cores': os.cpu_count()}
    result['limit'] = result['four_bit_size'] + 2 * shard + int(1.5e9)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'load_rss.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))
    assert result['peak'] <= result['limit']


if __name__ == '__main__': load(sys.argv[1]) if sys.argv[1:] else main()
