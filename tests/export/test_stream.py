"A merge that reads one weight at a time gives what peft gives for the whole model, number by number."
import json, multiprocessing, shutil, time

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM, AutoModelForImageTextToText, Gemma3Config, Gemma3ForConditionalGeneration, GPT2Config,
    GPT2LMHeadModel, MixtralConfig, MixtralForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen3MoeConfig,
    Qwen3MoeForCausalLM)

import llmft.export.merge as merge
from llmft.export.shards import stored_tensors
from llmft.export.stream import StreamedMerge
from llmft.inference.load import load_run_config
from llmft.model.adapters import load_saved_adapter
from llmft.model.base import load_base
from tests.small import SIZES, small_run
from tests.tiny import save_tiny, small_tokenizer


def in_ram(run, dtype=torch.float32, quantized=False):
    "The weights of base and adapter, merged by peft."
    config = load_run_config(run)
    return merge._merge(load_saved_adapter(load_base(config, quantized, dtype=dtype), run/'adapter')).state_dict()


def same(run, out, kind=AutoModelForCausalLM, **kwargs):
    "Merge a run and compare each weight."
    merge.merge_adapter(run, out, 'float32', answers=False, say=None)
    found, expected = kind.from_pretrained(out, dtype=torch.float32).state_dict(), in_ram(run, **kwargs)
    assert {*found} == {*expected}
    for name, tensor in expected.items(): assert torch.equal(found[name], tensor.float()), name


KINDS = {
    'LoRA': {},
    'rsLoRA': {'peft_use_rslora': True, 'lora_alpha': 5},
    'DoRA': {'peft_use_dora': True},
    'ranks': {'lora_rank_pattern': {'q_proj': 3}, 'lora_alpha_pattern': {'v_proj': 7}},
    'PiSSA': {'peft_init_lora_weights': 'pissa'},
    'OLoRA': {'peft_init_lora_weights': 'olora'},
    'orthogonal': {'peft_init_lora_weights': 'orthogonal'},
    'some blocks': {'peft_layers_to_transform': [1]},
    'embeddings': {'lora_target_modules': ['q_proj', 'embed_tokens']},
    'embeddings by DoRA': {'lora_target_modules': ['embed_tokens'], 'peft_use_dora': True},
    'whole layers': {'lora_target_modules': ['q_proj'], 'lora_modules_to_save': ['embed_tokens', 'lm_head']},
    'a whole norm': {'lora_target_modules': ['q_proj'], 'lora_modules_to_save': ['input_layernorm']},
    'some tokens': {'lora_target_modules': ['q_proj'], 'peft_trainable_token_indices': [3, 4]},
    'weights': {'lora_target_parameters': ['mlp.up_proj.weight'], 'lora_target_modules': ['q_proj'], 'lora_dropout': 0},
}


@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('tied', [True, False])
def test_each_kind_of_adapter(name, tied, tmp_path):
    model = save_tiny(tmp_path/'m', tokenizer=small_tokenizer(), tie_word_embeddings=tied, **SIZES)
    same(small_run(tmp_path, base_model=str(model), **KINDS[name]), tmp_path/'merged')


@pytest.mark.parametrize('keys', [{'tokens': ['<call>']}, {'tokens': ['<a>', '<b>'], 'lora_modules_to_save':
                                  ['embed_tokens', 'lm_head']}, {'resize_token_embeddings_to_32x': True}])
@pytest.mark.parametrize('tied', [True, False])
def test_new_tokens(keys, tied, tmp_path):
    tokenizer = small_tokenizer()
    model = save_tiny(tmp_path/'m', tokenizer=tokenizer, tie_word_embeddings=tied, **SIZES)
    small = AutoModelForCausalLM.from_pretrained(model)
    small.resize_token_embeddings(len(tokenizer))
    small.save_pretrained(model)
    same(small_run(tmp_path, base_model=str(model), **keys), tmp_path/'merged')


MODELS = {
    'mixtral': (MixtralForCausalLM, MixtralConfig, dict(num_local_experts=2), {}),
    'mixtral experts': (MixtralForCausalLM, MixtralConfig, dict(num_local_experts=2), {
        'lora_target_parameters': ['experts.gate_up_proj', 'experts.down_proj'], 'lora_dropout': 0}),
    'qwen3_moe one': (Qwen3MoeForCausalLM, Qwen3MoeConfig, dict(num_experts=2, num_experts_per_tok=1,
        moe_intermediate_size=8), {'lora_target_parameters': ['experts.down_proj'], 'lora_dropout': 0}),
    'phi3': (Phi3ForCausalLM, Phi3Config, {}, {}),
    'gpt2': (GPT2LMHeadModel, GPT2Config, dict(n_embd=16, n_layer=2, n_head=2, tie_word_embeddings=True), {}),
}


@pytest.mark.parametrize('name', MODELS)
def test_other_models(name, tmp_path):
    kind, shape, sizes, keys = MODELS[name]
    model = save_tiny(tmp_path/'m', kind, shape, tokenizer=small_tokenizer(), **SIZES | sizes)
    same(small_run(tmp_path, base_model=str(model), **keys), tmp_path/'merged')


def test_language_part_of_gemma3(tmp_path):
    text = dict(SIZES, vocab_size=1000, num_hidden_layers=2, head_dim=8)
    vision = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28,
                  patch_size=14)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4,
                                                        image_token_index=999))
    model.save_pretrained(tmp_path/'m')
    small_tokenizer().save_pretrained(tmp_path/'m')
    same(small_run(tmp_path, base_model=str(tmp_path/'m')), tmp_path/'merged', AutoModelForImageTextToText)


def sharded(folder, **sizes):
    "The small model in several files."
    model = save_tiny(folder, tokenizer=small_tokenizer(), **SIZES, **sizes)
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder, max_shard_size='20KB')
    (folder/'model.safetensors').unlink(missing_ok=True)
    return model


def test_files_keep_their_layout(tmp_path):
    model = sharded(tmp_path/'m')
    files = sorted(p.name for p in model.glob('*.safetensors'))
    assert len(files) > 3
    run = small_run(tmp_path, base_model=str(model))
    same(run, tmp_path/'merged')
    assert sorted(p.name for p in (tmp_path/'merged').glob('*.safetensors')) == files
    for name in files: # another library reads them
        assert {*load_file(tmp_path/'merged'/name)} == {tensor.name for tensor in stored_tensors(model/name)}
    index = json.loads((tmp_path/'merged'/'model.safetensors.index.json').read_text())
    assert {*index['weight_map'].values()} == {*files}


def test_other_files_beside_the_weights_do_not_count(tmp_path):
    model = save_tiny(tmp_path/'m', tokenizer=small_tokenizer(), **SIZES)
    shutil.copyfile(model/'model.safetensors', model/'consolidated.safetensors')
    same(small_run(tmp_path, base_model=str(model)), tmp_path/'merged')
    assert not (tmp_path/'merged'/'consolidated.safetensors').exists()


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_sums_are_rounded_once(dtype, tmp_path):
    model = save_tiny(tmp_path/'m', tokenizer=small_tokenizer(), **SIZES)
    AutoModelForCausalLM.from_pretrained(model).to(dtype).save_pretrained(model)
    run = small_run(tmp_path, base_model=str(model))
    out, expected = merge.merge_adapter(run, tmp_path/'merged', answers=False, say=None), in_ram(run)
    for name, tensor in load_file(out/'model.safetensors').items(): assert torch.equal(tensor, expected[name].to(dtype))
    assert json.loads((out/'config.json').read_text())['dtype'] == str(dtype).removeprefix('torch.')


def test_sum_on_the_weights_of_the_training(tmp_path):
    run = small_run(tmp_path, adapter='qlora', **{'lora_target_modules': ['q_proj', 'down_proj']})
    base = load_base(load_run_config(run), dtype=torch.float32)
    layer = base.model.layers[0].mlp.down_proj
    from bitsandbytes.functional import dequantize_4bit
    weight = dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    merged = StreamedMerge(load_run_config(run), run/'adapter', dequantized=True)
    unit = next(u for u in merged.units if 'model.layers.0.mlp.down_proj.weight' in u.sources)
    assert torch.equal(merged.base(unit)['model.layers.0.mlp.down_proj.weight'], weight.float())
    said = []
    merge.merge_adapter(run, tmp_path/'merged', 'float32', dequantized=True, say=said.append)
    assert 'the weights that the training saw' in str(said[0]) and 'answers are the same' in str(said[1])


def test_loftq_is_merged_on_the_weights_of_the_training(tmp_path):
    run = small_run(tmp_path, adapter='qlora', peft_init_lora_weights='loftq')
    merge.merge_adapter(run, tmp_path/'merged', 'float32', answers=False, say=None)
    assert json.loads((tmp_path/'merged'/'merge.json').read_text())['dequantized']


def test_what_cannot_be_streamed_is_merged_in_ram_and_said(tmp_path):
    run, said = small_run(tmp_path, peft_layer_replication=[[0, 2], [1, 2]]), []
    merge.merge_adapter(run, tmp_path/'merged', say=lambda x: said.append(str(x)))
    assert said[0] == 'The whole model is loaded for this merge, because the adapter repeats blocks of the model.'


def test_killed_at_any_moment(tmp_path):
    model = sharded(tmp_path/'m', num_hidden_layers=4)
    run, fork = small_run(tmp_path, base_model=str(model)), multiprocessing.get_context('fork')
    for delay in (.02, .1, .2, .3, .4):
        process = fork.Process(target=merge.merge_adapter, args=(run, tmp_path/'merged'), kwargs={'say': None})
        process.start()
        time.sleep(delay)
        process.kill()
        process.join()
        if (tmp_path/'merged').exists(): break
    if (tmp_path/'merged').exists(): shutil.rmtree(tmp_path/'merged')
    same(run, tmp_path/'merged')
    assert {p.name for p in tmp_path.iterdir()} == {'m', 'model', 'run', 'data.jsonl', 'merged'}
