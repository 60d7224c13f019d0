"A merged model that is not base and adapter is found out, and it is said how."
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from llmft.core import UserError
from llmft.export.check import check_merge
from llmft.export.merge import merge_adapter
from tests.small import SIZES, change_json, small_run
from tests.tiny import save_tiny, small_tokenizer


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    "A run and its merged model, (run, merged); tests copy the second."
    folder = tmp_path_factory.mktemp('made')
    run = small_run(folder)
    return run, merge_adapter(run, folder/'merged', answers=False, say=None)


def changed(made, tmp_path, change):
    "The merged model with other weights: `change` gets them as a dict."
    out = shutil.copytree(made[1], tmp_path/'changed')
    weights = load_file(out/'model.safetensors')
    weights = change(weights) or weights
    save_file({name: t.contiguous() for name, t in weights.items()}, out/'model.safetensors', {'format': 'pt'})
    return out


LAYER = 'model.layers.1.self_attn.q_proj.weight'
def coarse(dtype): return lambda weights: {name: t.to(dtype).to(t.dtype) for name, t in weights.items()}
def eight_bits(t): return ((t/t.abs().max()*127).round()*t.abs().max()/127) if t.ndim > 1 else t

WRONG = {
    'fewer bits': (coarse(torch.bfloat16), 'was rounded to fewer bits than float32 has'),
    'half precision': (coarse(torch.float16), 'fewer bits'),
    '8 bits': (lambda w: {n: t.to(torch.float8_e4m3fn).to(torch.bfloat16) for n, t in w.items()}, 'fewer bits'),
    'int8': (lambda w: {n: eight_bits(t).bfloat16() for n, t in w.items()}, 'fewer bits'),
    '8 bits as they are': (lambda w: {n: t.to(torch.float8_e4m3fn) for n, t in w.items()}, 'too coarse|fewer bits'),
    'a weight less': (lambda w: {n: t for n, t in w.items() if n != LAYER}, f'{LAYER} is missing'),
    'a weight more': (lambda w: w | {'model.extra.weight': torch.ones(2)}, 'model.extra.weight is in no file'),
    'another shape': (lambda w: w | {LAYER: w[LAYER][:-1]}, 'has the shape'),
    'a row less alike': (lambda w: w | {LAYER: w[LAYER].flip(0)}, 'does not come from this base model'),
    'another norm': (lambda w: w | {'model.norm.weight': w['model.norm.weight']*1.01}, 'model.norm.weight'),
}


@pytest.mark.parametrize('name', WRONG)
def test_wrong_weights(name, made, tmp_path):
    change, message = WRONG[name]
    with pytest.raises(UserError, match=message): check_merge(made[0], changed(made, tmp_path, change), answers=False)


def test_right_weights(made):
    check = check_merge(*made)
    assert check.share > .999 and check.answers[0] >= 3 and check.answers[1] < 1e-5
    assert 'have the change of the adapter' in str(check)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_merges_of_others_are_right(dtype, tmp_path):
    "As peft does it, in the format of the file."
    from peft import AutoPeftModelForCausalLM
    run = small_run(tmp_path)
    model = AutoPeftModelForCausalLM.from_pretrained(run/'adapter', dtype=dtype).merge_and_unload()
    model.save_pretrained(tmp_path/'theirs')
    check_merge(run, tmp_path/'theirs', answers=None if dtype == torch.float32 else False)


@pytest.mark.parametrize(('alpha', 'message'), [(2, 'its scaling is wrong'), (64, 'scaling is wrong')])
def test_wrong_scaling(alpha, message, tmp_path):
    run = small_run(tmp_path)
    other = shutil.copytree(run, tmp_path/'other')
    change_json(other/'adapter'/'adapter_config.json', lora_alpha=alpha)
    merged = merge_adapter(other, tmp_path/'merged', answers=False, say=None)
    with pytest.raises(UserError, match=message): check_merge(run, merged, answers=False)


def test_scaling_of_another_kind(tmp_path):
    run = small_run(tmp_path, peft_use_rslora=True)
    other = shutil.copytree(run, tmp_path/'other')
    change_json(other/'adapter'/'adapter_config.json', use_rslora=False)
    merged = merge_adapter(other, tmp_path/'merged', answers=False, say=None)
    with pytest.raises(UserError, match='has 0.71 times the change'): check_merge(run, merged, answers=False)


def test_a_missing_layer(made, tmp_path):
    base = load_file(made[0].parent/'model'/'model.safetensors')
    out = changed(made, tmp_path, lambda weights: weights | {LAYER: base[LAYER]})
    with pytest.raises(UserError, match=f'{LAYER} is as in the base model'): check_merge(made[0], out, answers=False)


def test_the_base_alone(made):
    with pytest.raises(UserError, match='is as in the base model.*and 13 more'):
        check_merge(made[0], made[0].parent/'model', answers=False)


def test_another_adapter(made, tmp_path):
    run = shutil.copytree(made[0], tmp_path/'run')
    file = run/'adapter'/'adapter_model.safetensors'
    torch.manual_seed(3)
    save_file({name: torch.randn_like(t) for name, t in load_file(file).items()}, file, {'format': 'pt'})
    with pytest.raises(UserError, match='does not come from this base model and this adapter'):
        check_merge(run, made[1], answers=False)


def test_another_base(made, tmp_path):
    other = small_run(tmp_path)
    weights = load_file(tmp_path/'model'/'model.safetensors')
    save_file({name: t + .05*torch.randn_like(t) for name, t in weights.items()}, tmp_path/'model'/'model.safetensors',
              {'format': 'pt'})
    merged = merge_adapter(other, tmp_path/'merged', answers=False, say=None)
    with pytest.raises(UserError, match='base'): check_merge(made[0], merged, answers=False)


def test_weights_that_are_tied_again(tmp_path):
    model = save_tiny(tmp_path/'m', tokenizer=small_tokenizer(), tie_word_embeddings=True, **SIZES)
    run = small_run(tmp_path, base_model=str(model), lora_target_modules=['embed_tokens'])
    merged = merge_adapter(run, tmp_path/'merged', answers=False, say=None)
    check_merge(run, merged)
    change_json(merged/'config.json', tie_word_embeddings=True)
    with pytest.raises(UserError, match='its config.json says that they are one'):
        check_merge(run, merged, answers=False)
    weights = load_file(merged/'model.safetensors')
    del weights['lm_head.weight']
    save_file(weights, merged/'model.safetensors', {'format': 'pt'})
    with pytest.raises(UserError, match='lm_head.weight is missing'): check_merge(run, merged, answers=False)


def test_weights_that_were_parted_for_nothing(tmp_path):
    model = save_tiny(tmp_path/'m', tokenizer=small_tokenizer(), tie_word_embeddings=True, **SIZES)
    run = small_run(tmp_path, base_model=str(model))
    merged = merge_adapter(run, tmp_path/'merged', answers=False, say=None)
    change_json(merged/'config.json', tie_word_embeddings=False)
    with pytest.raises(UserError, match='no file has it'): check_merge(run, merged, answers=False)


def faint(tmp_path, times):
    "A run in bfloat16 whose adapter changes little."
    model = save_tiny(tmp_path/'m', tokenizer=small_tokenizer(), **SIZES)
    AutoModelForCausalLM.from_pretrained(model).bfloat16().save_pretrained(model)
    run = small_run(tmp_path, base_model=str(model))
    file = run/'adapter'/'adapter_model.safetensors'
    save_file({name: t*times for name, t in load_file(file).items()}, file, {'format': 'pt'})
    return run


def test_a_change_that_is_rounded_away(tmp_path):
    run = faint(tmp_path, .002)
    with pytest.raises(UserError, match='because bfloat16 rounds the rest away'):
        merge_adapter(run, tmp_path/'merged', answers=False, say=None)
    assert not (tmp_path/'merged').exists()
    merge_adapter(run, tmp_path/'merged', 'float32', say=None)


def test_a_change_that_is_rounded_away_in_part(tmp_path, monkeypatch):
    "It is told, and where the answers differ for it, that is the reason which is given."
    run, said = faint(tmp_path, .01), []
    merge_adapter(run, tmp_path/'merged', answers=False, say=lambda text: said.append(str(text)))
    assert 'bfloat16 rounds the rest away. Merge with `--dtype float32`, or with `--dtype float16`' in '\n'.join(said)
    monkeypatch.setattr('llmft.export.check._differing_tokens', lambda *args: 1)
    with pytest.raises(UserError, match=r'The reason is that bfloat16 rounds \d+% of .* `--dtype float16`'):
        merge_adapter(run, tmp_path/'other', say=None)
    assert not (tmp_path/'other').exists()


def test_answers_are_compared_where_weights_cannot_be(tmp_path):
    run = small_run(tmp_path, peft_layer_replication=[[0, 2], [1, 2]])
    merged = merge_adapter(run, tmp_path/'merged', say=None)
    assert 'Weights were not compared, because' in str(check_merge(run, merged))
    weights = load_file(merged/'model.safetensors')
    weights['lm_head.weight'] *= -1
    save_file(weights, merged/'model.safetensors', {'format': 'pt'})
    with pytest.raises(UserError, match='does not answer as base and adapter do'): check_merge(run, merged)


def test_no_room_for_the_models(made, monkeypatch):
    monkeypatch.setattr('llmft.export.check.ram_bytes', lambda: 10**9)
    assert 'have no room in this RAM' in str(check_merge(*made))


@pytest.mark.parametrize(('name', 'message'), [('no', 'is not the folder of a model'), ('empty', 'is not the folder')])
def test_not_a_model(name, message, made, tmp_path):
    (tmp_path/'empty').mkdir()
    with pytest.raises(UserError, match=message): check_merge(made[0], tmp_path/name)
