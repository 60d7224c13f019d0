"Memory while a model of a billion random weights, saved in 8 files, is loaded into 4 bits on the CPU."
import json, os, platform, re, resource, subprocess, sys, tempfile, time
from pathlib import Path
import torch
from llmft.config.config import load_config
from llmft.model.base import load_base

RESULTS = Path(__file__).parent/'results'
SHARDS = 8


def save_llama_1b(folder):
    "A Llama of 1.1 billion random weights in bfloat16, in 8 files; never more than one is in memory."
    from safetensors.torch import save_file
    from transformers import LlamaConfig, LlamaForCausalLM
    shape = LlamaConfig(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32, num_key_value_heads=4,
        tie_word_embeddings=False, dtype='bfloat16', architectures=['LlamaForCausalLM'])
    folder.mkdir()
    shape.save_pretrained(folder)
    with torch.device('meta'): shapes = {n: p.shape for n, p in LlamaForCausalLM(shape).state_dict().items()}
    total, files, index, n = 2 * sum(s.numel() for s in shapes.values()), [{} for _ in range(SHARDS)], {}, 0
    for name, s in shapes.items():
        files[min(SHARDS - 1, n * SHARDS // total)][name] = s
        n += 2 * s.numel()
    for i, part in enumerate(files):
        save_file({k: torch.ones(s, dtype=torch.bfloat16) if 'norm' in k else torch.empty(s, dtype=torch.bfloat16).normal_(std=.02) for k, s in part.items()},
            folder/f'model-{i + 1:05}-of-{SHARDS:05}.safetensors', metadata={'format': 'pt'})
        index |= {k: f'model-{i + 1:05}-of-{SHARDS:05}.safetensors' for k in part}
    (folder/'model.safetensors.index.json').write_text(json.dumps({'metadata': {'total_size': total}, 'weight_map': index}))
    return total


def peak_rss(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024) # bytes


def load(folder): # in a process of its own
    import transformers, bitsandbytes, peft # what is in memory before
    before, start = peak_rss(), time.perf_counter()
    model = load_base(load_config({'base_model': folder, 'datasets': [{'path': 'x'}], 'bf16': True}))
    size = sum(p.numel() * p.element_size() for p in model.parameters()) + sum(t.numel() * t.element_size() for m in model.modules() if (s := getattr(getattr(m, 'weight', None), 'quant_state', None))
        for t in [s.absmax, s.code, s.state2.absmax, s.state2.code])
    print(json.dumps({'before': before, 'peak': peak_rss(), 'four_bit_size': size, 'seconds': round(time.perf_counter() - start, 1)}))


def main():
    with tempfile.TemporaryDirectory() as tmp:
        total = save_llama_1b(Path(tmp)/'model')
        shard = max(f.stat().st_size for f in (Path(tmp)/'model').glob('*.safetensors'))
        out = subprocess.run([sys.executable, __file__, str(Path(tmp)/'model')], capture_output=True, text=True, check=True).stdout
    result = json.loads(out.splitlines()[-1]) | {'bfloat16_size': total, 'largest_shard': shard, 'shards': SHARDS, 'torch': torch.__version__, 'python': platform.python_version(), 'cores': os.cpu_count()}
    result['limit'] = result['four_bit_size'] + 2 * shard + int(1.5e9)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS/'load_rss.json').write_text(json.dumps(result, indent=1) + '\n')
    print(json.dumps(result, indent=1))
    assert result['peak'] <= result['limit']


if __name__ == '__main__': load(sys.argv[1]) if sys.argv[1:] else main()
