"A model and a run of a few kilobytes, whole, to be broken in tests."
import json, shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

from llmft.config.config import load_config, save_config
from llmft.model.adapters import add_adapter, save_trained
from llmft.model.base import load_base
from tests.tiny import alpaca_rows, save_rows, save_tiny, small_tokenizer

SIZES = dict(hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2)


@cache
def saved_model(): # made once; `small_model` copies it
    return save_tiny(Path(mkdtemp())/'model', tokenizer=small_tokenizer(), **SIZES)


def small_model(folder):
    "A model of two blocks with its tokenizer in `folder`."
    return Path(shutil.copytree(saved_model(), folder))


def small_config(folder, **keys):
    "A run on eight rows, all its files in `folder`."
    folder = Path(folder)
    if not (folder/'model').exists(): small_model(folder/'model')
    save_rows(folder/'data.jsonl', [row | {'tests': 'assert True'} for row in alpaca_rows(8)])
    return load_config({
        'base_model': str(folder/'model'), 'adapter': 'lora', 'lora_r': 2, 'sequence_len': 128, 'bf16': False,
        'datasets': [{'path': str(folder/'data.jsonl')}], 'test_datasets': [{'path': str(folder/'data.jsonl')}],
        'sample_packing': False, 'gradient_checkpointing': False, 'max_steps': 1, 'max_new_tokens': 4,
        'output_dir': str(folder/'run')
    } | keys)


def small_run(folder, **keys):
    "A run folder as it is after training, `folder/run`; the adapter has random weights."
    import torch
    from transformers import AutoTokenizer
    config = small_config(folder, **keys)
    run, tuned = Path(config.output_dir), add_adapter(load_base(config), config)
    torch.manual_seed(1)
    for name, p in tuned.named_parameters():
        if p.requires_grad: p.data += .3 * torch.randn_like(p)
    (run/'adapter').mkdir(parents=True)
    save_trained(tuned, run/'adapter')
    AutoTokenizer.from_pretrained(config.base_model).save_pretrained(run/'adapter')
    save_config(config, run/'config_completed.yml')
    return run


def change_json(file, **changes):
    "Set keys of a JSON file."
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def tree(folder='.'):
    "Every file below a folder with its content, to see that nothing was written."
    return {str(p): p.read_bytes() if p.is_file() else None for p in Path(folder).rglob('*')}
