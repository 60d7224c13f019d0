"A GGUF file holds the merged model: its numbers, its tokens, its template."
import json

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM, Gemma2Config, Gemma2ForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig,
    LlamaForCausalLM, MistralConfig, MistralForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedTokenizerFast,
    Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)

from llmft.core import UserError
from llmft.export.gguf import check_gguf_type, export_gguf
from llmft.export.gguf_tokenizer import _LLAMA3, _QWEN2, pre_tokenizer_name
from llmft.export.merge import merge_adapter
from tests.small import SIZES, small_run
from tests.tiny import CHAT_TEMPLATE, alpaca_rows, save_tiny, small_tokenizer

ROWS = dict(SIZES, hidden_size=64, intermediate_size=64, num_attention_heads=4, num_key_value_heads=2)
GEMMA = dict(head_dim=256, query_pre_attn_scalar=256, tie_word_embeddings=True)
LLAMA3 = dict(rope_parameters=dict(rope_type='llama3', rope_theta=1e4, factor=8.0, low_freq_factor=1.0,
                                   high_freq_factor=4.0, original_max_position_embeddings=64))
MODELS = {
    'llama': (LlamaForCausalLM, LlamaConfig, {}),
    'llama tied': (LlamaForCausalLM, LlamaConfig, {'tie_word_embeddings': True}),
    'mistral': (MistralForCausalLM, MistralConfig, {'sliding_window': None}),
    'qwen2': (Qwen2ForCausalLM, Qwen2Config, {}),
    'qwen3': (Qwen3ForCausalLM, Qwen3Config, {'head_dim': 128}),
    'gemma2': (Gemma2ForCausalLM, Gemma2Config, GEMMA),
    'gemma3': (Gemma3ForCausalLM, Gemma3TextConfig, GEMMA),
}


def made(tmp_path, kind=LlamaForCausalLM, shape=LlamaConfig, tokenizer=None, run_keys=None, **sizes):
    "A run on a small model of some kind."
    model = save_tiny(tmp_path/'m', kind, shape, tokenizer=tokenizer or words_tokenizer(), **ROWS | sizes)
    return small_run(tmp_path, base_model=str(model), **run_keys or {})


def words_tokenizer(): # as GPT-2 cuts text
    return small_tokenizer()


def logits(model):
    with torch.no_grad(): return model(torch.arange(40)[None]).logits


@pytest.mark.parametrize('name', MODELS)
def test_read_again(name, tmp_path):
    kind, shape, sizes = MODELS[name]
    run = made(tmp_path, kind, shape, **sizes)
    merged = merge_adapter(run, tmp_path/'merged', 'float32', answers=False, say=None)
    export_gguf(merged, tmp_path/'model.gguf', 'f32', say=None)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file='model.gguf', dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert (logits(theirs) - logits(ours)).abs().max() < 1e-4


def fields(file): return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


@pytest.mark.parametrize('type', ['f16', 'bf16', 'q8_0', 'q4_0', 'q5_1'])
def test_number_formats(type, tmp_path):
    merged = merge_adapter(made(tmp_path), tmp_path/'merged', 'float32', answers=False, say=None)
    export_gguf(merged, tmp_path/'model.gguf', type, say=None)
    kinds = {t.name: t.tensor_type.name.lower() for t in gguf.GGUFReader(tmp_path/'model.gguf').tensors}
    assert kinds['blk.0.ffn_up.weight'] == type and kinds['output_norm.weight'] == 'f32'
    assert kinds['output.weight'] == ('q8_0' if type.startswith(('q4', 'q5')) else type)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file='model.gguf', dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32).state_dict()
    limit = {'f16': .0005, 'bf16': .004, 'q8_0': .02, 'q4_0': .2, 'q5_1': .1}[type]
    for name, tensor in theirs.state_dict().items(): assert (tensor - ours[name]).norm() < limit*ours[name].norm()


def test_what_is_in_the_file(tmp_path):
    export_gguf(made(tmp_path), tmp_path/'a.gguf', say=None)
    found, tokenizer = fields(tmp_path/'a.gguf'), small_tokenizer()
    assert found['tokenizer.ggml.model'] == 'gpt2' and found['tokenizer.ggml.pre'] == 'gpt-2'
    assert found['tokenizer.ggml.add_bos_token'] is True
    assert found['tokenizer.ggml.eos_token_id'] == tokenizer.eos_token_id
    assert [found['tokenizer.ggml.tokens'][i] for i in (0, 1, 300)] == tokenizer.convert_ids_to_tokens([0, 1, 300])
    assert len(found['tokenizer.ggml.tokens']) == 1000 and found['tokenizer.ggml.tokens'][-1] == '[PAD999]'
    assert found['general.file_type'] == 1
    assert 'Below is an instruction' in found['tokenizer.chat_template']
    assert {p.name for p in tmp_path.iterdir()} == {'a.gguf', 'm', 'model', 'run', 'data.jsonl'}


def test_template_is_that_of_the_training(tmp_path):
    keys = {'datasets': [{'path': str(tmp_path/'data.jsonl'), 'type': 'chat_template', 'chat_template': 'chatml'}]}
    tokenizer = small_tokenizer()
    tokenizer.add_special_tokens({'additional_special_tokens': ['<|im_start|>', '<|im_end|>']})
    export_gguf(made(tmp_path, tokenizer=tokenizer, run_keys=keys), tmp_path/'a.gguf', say=None)
    found = fields(tmp_path/'a.gguf')
    assert '<|im_start|>' in found['tokenizer.chat_template'] and found['tokenizer.chat_template'] != CHAT_TEMPLATE
    assert found['tokenizer.ggml.tokens'][found['tokenizer.ggml.eot_token_id']] == '<|im_end|>'


def trained(*rules, **kwargs):
    "A tokenizer that cuts text by these rules."
    t = Tokenizer(models.BPE(**kwargs))
    t.pre_tokenizer, t.decoder = pre_tokenizers.Sequence([*rules]), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=['<s>', '</s>'],
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    t.train_from_iterator([str(row) for row in alpaca_rows(40)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=t, bos_token='<s>', eos_token='</s>', chat_template=CHAT_TEMPLATE)


def split(pattern): return pre_tokenizers.Split(Regex(pattern), 'isolated')
def level(use_regex=True, **kwargs): return pre_tokenizers.ByteLevel(False, use_regex=use_regex, **kwargs)

RULES = {'gpt-2': [level()], 'smollm': [pre_tokenizers.Digits(True), level()],
         'llama-bpe': [split(_LLAMA3), level(False)], 'qwen2': [split(_QWEN2), level(False)]}


@pytest.mark.parametrize('name', RULES)
def test_rules_have_a_name(name, tmp_path):
    export_gguf(made(tmp_path, tokenizer=trained(*RULES[name])), tmp_path/'a.gguf', say=None)
    assert fields(tmp_path/'a.gguf')['tokenizer.ggml.pre'] == name


@pytest.mark.parametrize('rules', [[pre_tokenizers.Whitespace()], [pre_tokenizers.Digits(False), level()],
                                   [split(r'\d'), level()], [pre_tokenizers.ByteLevel(True)]])
def test_rules_without_a_name(rules):
    tokenizer = json.loads(trained(*rules).backend_tokenizer.to_str())
    with pytest.raises(UserError, match='cuts text by rules that are not known'):
        pre_tokenizer_name(tokenizer['pre_tokenizer'])


WRONG = {
    'another architecture': (PhiForCausalLM, PhiConfig, {}, '`phi` is not written here; llama, '),
    'other positions': (LlamaForCausalLM, LlamaConfig, dict(rope_parameters=dict(rope_type='dynamic', rope_theta=1e4,
        factor=2.0)), 'positions of the kind `dynamic`'),
    'another scale': (Gemma2ForCausalLM, Gemma2Config, dict(GEMMA, query_pre_attn_scalar=99), 'query_pre_attn_scalar'),
    'other layers': (Gemma3ForCausalLM, Gemma3TextConfig, dict(GEMMA, layer_types=['full_attention']*2), 'every 6th'),
}


@pytest.mark.parametrize('name', WRONG)
def test_refused_by_name(name, tmp_path):
    kind, shape, sizes, message = WRONG[name]
    run = made(tmp_path, kind, shape, **sizes)
    with pytest.raises(UserError, match=message): export_gguf(run, tmp_path/'a.gguf', say=None)
    assert not [*tmp_path.glob('*.gguf')] and not [*tmp_path.glob('.*')]


@pytest.mark.parametrize(('out', 'message'), [('a.bin', 'ends with .gguf'), ('run', 'ends with .gguf'),
                                              ('there.gguf', 'exists already')])
def test_wrong_files(out, message, tmp_path):
    (tmp_path/'there.gguf').write_text('')
    with pytest.raises(UserError, match=message): export_gguf(small_run(tmp_path), tmp_path/out, say=None)


@pytest.mark.parametrize(('type', 'message'), [('int3', 'there is no type'), ('q4_k_m', 'llama-quantize')])
def test_wrong_types(type, message, monkeypatch):
    monkeypatch.setenv('PATH', '')
    with pytest.raises(UserError, match=message): check_gguf_type(type)


def test_numbers_too_large_for_f16(tmp_path):
    run = made(tmp_path)
    merged = merge_adapter(run, tmp_path/'merged', 'float32', answers=False, say=None)
    model = AutoModelForCausalLM.from_pretrained(merged)
    model.lm_head.weight.data[0, 0] = 1e6
    model.save_pretrained(merged)
    with pytest.raises(UserError, match='lm_head.weight has numbers that are too large for f16'):
        export_gguf(merged, tmp_path/'a.gguf', say=None)
    export_gguf(merged, tmp_path/'a.gguf', 'bf16', say=None)
