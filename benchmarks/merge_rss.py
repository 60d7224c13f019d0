"""A merge of 1 billion random weights in 8 files: peak RSS and time, beside a copy of the files.

    python -m benchmarks.merge_rss FOLDER
"""
import json, os, re, shutil, subprocess, sys, time
from pathlib import Path

SIZES = dict(vocab_size=32000, hidden_size=2048, intermediate_size=5632, num_hidden_layers=20, num_attention_heads=16,
             num_key_value_heads=4)
N_FILES, RESULTS = 8, Path(__file__).parent/'results'


def make_base(folder):
    "Random bfloat16 weights, written one by one."
    import torch
    from transformers import LlamaConfig
    from llmft.export.shards import ShardWriter, write_index
    from llmft.model.architectures import empty_model
    from tests.tiny import small_tokenizer
    folder.mkdir(parents=True)
    config = LlamaConfig(**SIZES, tie_word_embeddings=False, bos_token_id=1, eos_token_id=2)
    shapes = {name: t.shape for name, t in empty_model(config).state_dict().items()}
    limit, shards, writer, written = sum(s.numel() for s in shapes.values()) / N_FILES, {}, None, 0
    torch.manual_seed(0)
    for name, shape in shapes.items():
        if writer is None or written > limit * len(shards):
            if writer: writer.close()
            file = f'model-{len(shards) + 1:05}-of-{N_FILES:05}.safetensors'
            writer, shards[file] = ShardWriter(folder/file, [*shapes]), []
        writer.add(name, (torch.ones(shape) if len(shape) == 1 else .02*torch.randn(shape)).bfloat16())
        shards[file].append(name)
        written += shape.numel()
    writer.close()
    write_index(folder, shards)
    config.architectures, config.dtype = ['LlamaForCausalLM'], 'bfloat16'
    config.save_pretrained(folder)
    small_tokenizer().save_pretrained(folder)


def make_run(folder, base):
    "A run folder with an adapter of rank 16 on all linear layers."
    import torch
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import save_file
    from transformers import AutoConfig
    from llmft.config.config import load_config, save_config
    from llmft.model.architectures import empty_model
    from tests.tiny import save_rows, alpaca_rows, small_tokenizer
    save_rows(folder/'data.jsonl', alpaca_rows(4))
    config = load_config({'base_model': str(base), 'adapter': 'lora', 'lora_r': 16,
                          'datasets': [{'path': str(folder/'data.jsonl')}], 'output_dir': str(folder/'run')})
    adapter = folder/'run'/'adapter'
    adapter.mkdir(parents=True)
    tuned = get_peft_model(empty_model(AutoConfig.from_pretrained(base)), LoraConfig(
        r=16, lora_alpha=32, target_modules='all-linear', task_type='CAUSAL_LM', base_model_name_or_path=str(base)))
    weights = {name.replace('.default', ''): .02*torch.randn(p.shape) for name, p in tuned.named_parameters()
               if 'lora_' in name}
    save_file(weights, adapter/'adapter_model.safetensors', {'format': 'pt'})
    tuned.peft_config['default'].save_pretrained(adapter)
    small_tokenizer().save_pretrained(adapter)
    save_config(config, folder/'run'/'config_completed.yml')


def copy(base, out):
    "What a copy takes, each file on the disk at the end."
    start = time.monotonic()
    out.mkdir()
    for file in base.iterdir():
        shutil.copyfile(file, out/file.name)
        handle = os.open(out/file.name, os.O_RDONLY)
        os.fsync(handle)
        os.close(handle)
    return time.monotonic() - start


def peak_mb(): # of this process alone
    return int(re.search(r'VmHWM:\s+(\d+)', Path('/proc/self/status').read_text())[1]) / 1000


def merge(folder, weights):
    "In a process of its own: (seconds, peak RSS in MB, RSS of the imports in MB)."
    import peft, torch, transformers  # noqa: F401
    from llmft.export.merge import merge_adapter
    before = peak_mb()
    start = time.monotonic()
    merge_adapter(folder/'run', folder/'merged', answers=False, weights=weights, say=None)
    seconds = time.monotonic() - start
    return {'seconds': round(seconds, 1), 'peak_mb': round(peak_mb()),
            'imports_mb': round(before)}


def main(folder):
    folder = Path(folder)
    base, results = folder/'base', {}
    if not base.exists():
        make_base(base)
        make_run(folder, base)
    shard = max(file.stat().st_size for file in base.glob('*.safetensors')) / 1e6
    results['weights'], results['shard_mb'] = sum(f.stat().st_size for f in base.glob('*.safetensors'))//2, round(shard)
    for name, weights in (('merge', False), ('merge and comparison', True)):
        shutil.rmtree(folder/'copy', ignore_errors=True)
        results[f'copy before {name}'] = round(copy(base, folder/'copy'), 1)
        shutil.rmtree(folder/'copy')
        code = ('import json; from benchmarks.merge_rss import merge, Path; '
                f'print(json.dumps(merge(Path({str(folder)!r}), {weights})))')
        run = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
        if run.returncode: raise SystemExit(run.stderr[-3000:])
        results[name] = json.loads(run.stdout.splitlines()[-1])
        shutil.rmtree(folder/'merged')
    results['limit_mb'] = round(2.5*shard + 300)
    print(json.dumps(results, indent=1))
    (RESULTS/'merge_rss.json').write_text(json.dumps(results, indent=1) + '\n')


if __name__ == '__main__': main(*sys.argv[1:])
