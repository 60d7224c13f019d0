"Small models with random weights and small files of rows, for tests."
import json
from pathlib import Path
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from llmft.config.config import load_config
from llmft.hub import fetch_builtin

torch.set_num_threads(1) # models this small gain nothing from more, and lose much where cores are shared


ALPACA = ('Below is an instruction that describes a task, paired with an input that provides further context. '
          'Write a response that appropriately completes the request.\n\n'
          '### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n{output}')
CHAT_TEMPLATE = ('{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}'
                 '{% if add_generation_prompt %}<s>assistant: {% endif %}')


def builtin_tokenizer(): return AutoTokenizer.from_pretrained(fetch_builtin())


def small_tokenizer():
    "Byte-level pieces of a vocabulary of 600, with a `<s>` that it puts first."
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    t = Tokenizer(models.BPE())
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    texts = [ALPACA.format(**r) for r in alpaca_rows(40)]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=['<unk>', '<s>', '</s>'], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator(texts, trainer)
    t.post_processor = processors.TemplateProcessing(single='<s> $A', special_tokens=[('<s>', 1)])
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<s>', eos_token='</s>', unk_token='<unk>',
                                   chat_template=CHAT_TEMPLATE)


def save_tiny(folder, kind=LlamaForCausalLM, shape=LlamaConfig, tokenizer=None, **sizes):
    "Save a model of few weights, with a tokenizer, in `folder`."
    tokenizer = tokenizer or builtin_tokenizer()
    sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, initializer_range=.1, max_position_embeddings=2048,
                 tie_word_embeddings=False) | sizes
    ids = {f'{name}_token_id': getattr(tokenizer, f'{name}_token_id') for name in ('bos', 'eos', 'pad')}
    torch.manual_seed(0)
    model = kind(shape(vocab_size=max(len(tokenizer), 1000), **ids, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def save_rows(path, rows):
    Path(path).write_text(''.join(json.dumps(r) + '\n' for r in rows), encoding='utf-8')
    return str(path)


def alpaca_row(i):
    return {'instruction': f'Add {i} to a number' + ', please' * (i % 5), 'input': '' if i % 2 else f'x = {i}',
            'output': f'def add(x):\n    return x + {i}' + f' + {i}' * (i % 7)}


def alpaca_rows(n): return [alpaca_row(i) for i in range(n)] # of different lengths


def tiny_config(model, data, out, **keys):
    datasets = data if isinstance(data, list) else [{'path': str(data)}]
    config = {'base_model': str(model), 'datasets': datasets, 'sequence_len': 256, 'micro_batch_size': 2,
              'learning_rate': 1e-2, 'gradient_checkpointing': False, 'max_new_tokens': 4, 'output_dir': str(out)}
    return load_config(config | keys)
