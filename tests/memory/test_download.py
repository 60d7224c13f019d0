"How much of a model is downloaded: by its index, else by its weights and the bits that its author gave them."
import json
import pytest
from transformers import GptOssConfig
from tests.memory.test_layers import SIZES, run_config
from llmft.memory.plan import plan_memory
from llmft.memory.stored import download_bytes
from llmft.model.base import load_hf_config
from llmft.model.architectures import empty_model

BIG = dict( # as Llama 3.1 8B
    model_type='llama', vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, max_position_embeddings=8192, tie_word_embeddings=False)
HEAD, LINEAR = 2*128256*4096, 32*(2*4096*4096 + 2*1024*4096 + 3*4096*14336)


def download(base, name='owner/name'):
    config = run_config(base_model=name, sequence_len=64)
    hf_config = load_hf_config(config, base)
    return download_bytes(config, hf_config, empty_model(hf_config))


@pytest.mark.parametrize('values,bits', [
    ({}, 16), ({'quant_method': 'awq', 'bits': 4, 'group_size': 128}, 4 + 20/128),
    ({'quant_method': 'gptq', 'bits': 3, 'group_size': 64}, 3 + 19/64),
    ({'quant_method': 'gptq', 'bits': 8, 'group_size': -1}, 8),
    ({'quant_method': 'fp8', 'weight_block_size': [128, 128]}, 8), ({'quant_method': 'fbgemm_fp8'}, 8),
    ({'quant_method': 'compressed-tensors', 'ignore': ['lm_head'], 'config_groups': {'g': {'weights': {
        'num_bits': 4, 'group_size': 32}}}}, 4 + 20/32),
    ({'quant_method': 'bitsandbytes', 'load_in_4bit': True, 'bnb_4bit_use_double_quant': True}, 4 + 8/64 + 32/64/256),
    ({'quant_method': 'bitsandbytes', 'load_in_8bit': True}, 8)], ids=str)
def test_by_the_bits(values, bits):
    base = BIG | ({'quantization_config': values} if values else {})
    assert download(base) == pytest.approx(2*HEAD + LINEAR*bits/8, rel=1e-3)


def test_layers_that_the_author_left_alone():
    values = {'quant_method': 'awq', 'bits': 4, 'group_size': 128}
    def size(**more): return download(BIG | {'quantization_config': values | more})
    left = 32*4096*14336*(16 - 4 - 20/128)/8
    assert size(modules_to_not_convert=['down_proj']) - size() == pytest.approx(left, rel=1e-3)
    ignored = dict(values, quant_method='compressed-tensors', ignore=['lm_head', 're:.*down_proj'])
    assert download(BIG | {'quantization_config': ignored}) == pytest.approx(size() + left, rel=1e-3)


def test_experts_in_mxfp4(): # gpt-oss-20b, whose files have 13.8 GB
    values = {'quant_method': 'mxfp4', 'modules_to_not_convert': ['model.layers.*.self_attn']}
    config = GptOssConfig(num_hidden_layers=24, num_local_experts=32).to_dict() | {'quantization_config': values}
    assert download(config) == pytest.approx(13.76e9, rel=.01)


def test_by_the_index(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path))
    files = tmp_path/'models--owner--other'/'snapshots'/'c0ffee'
    small = dict(SIZES, model_type='llama', num_hidden_layers=2)
    for folder in (files, files.parents[1]/'refs'): folder.mkdir(parents=True)
    (files.parents[1]/'refs'/'main').write_text('c0ffee')
    index = {'metadata': {'total_size': 1000}, 'weight_map': {'a': 'one', 'b': 'two'}}
    (files/'model.safetensors.index.json').write_text(json.dumps(index))
    assert download(small, 'owner/other') == 1000
    (files/'one').touch()
    assert download(small, 'owner/other') == 500
    assert plan_memory(run_config(base_model='owner/other'), 'T4', small).disk['download'] == 500
