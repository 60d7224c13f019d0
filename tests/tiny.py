"Small models with random weights and small files of rows, for tests."
import json
from pathlib import Path
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
from llmft.config import load_config
from llmft.hub import fetch_builtin


def builtin_tokenizer(): return AutoTokenizer.from_pretrained(fetch_builtin())


def save_tiny(folder, kind=LlamaForCausalLM, shape=LlamaConfig, tokenizer=None, **sizes):
    "Save a model of few weights, with a tokenizer, in `folder`."
    tokenizer = tokenizer or builtin_tokenizer()
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=.1,
        max_position_embeddings=2048, tie_word_embeddings=False) | sizes
    torch.manual_seed(0)
    model = kind(shape(vocab_size=max(len(tokenizer), 1000), bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def save_rows(path, rows):
    Path(path).write_text(''.join(json.dumps(r) + '\n' for r in rows), encoding='utf-8')
    return str(path)


def alpaca_rows(n): # of different lengths
    return [{'instruction': f'Add {i} to a number' + ', please' * (i % 5), 'input': '' if i % 2 else f'x = {i}', 'output': f'def add(x):\n    return x + {i}' + f' + {i}' * (i % 7)} for i in range(n)]


def tiny_config(model, data, out, **more):
    datasets = data if isinstance(data, list) else [{'path': str(data)}]
    return load_config({'base_model': str(model), 'datasets': datasets, 'sequence_len': 256, 'micro_batch_size': 2, 'learning_rate': 1e-2,
        'gradient_checkpointing': False, 'output_dir': str(out)} | more)
