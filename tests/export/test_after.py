"What the YAML asks for after training: planned before it, made once, gone on with."
import json, os, shutil
from pathlib import Path

import pytest
from transformers import PhiConfig, PhiForCausalLM

from llmft.commands.check import check_run
from llmft.commands.cli import main
from llmft.config.config import load_config, save_config
from llmft.core import UserError
from llmft.export.after import AFTER, check_after, make_after, plan_after
from llmft.model.gpus import Machine
from llmft.training.sweep import sweep
from llmft.training.train import finetune
from tests.small import SIZES, change_json, small_config, small_run, tree
from tests.tiny import save_tiny, small_tokenizer


@pytest.fixture(autouse=True)
def no_token(monkeypatch): monkeypatch.setattr('huggingface_hub.get_token', lambda: None)


def config_of(folder, **keys): return small_config(folder, leakage='keep', sample_prompts=0, **keys)


def steps(folder): return json.loads((folder/AFTER).read_text())


# keys

def test_a_list_and_a_mapping_are_the_same(tmp_path):
    def after(value): return small_config(tmp_path, after=value).after
    assert after(['merge', {'gguf': 'q4_0'}, {'push': 'me/model'}]) == after(
        {'merge': True, 'gguf': {'type': 'q4_0'}, 'evaluate': False, 'push': {'repo': 'me/model'}})
    assert after('merge') == after(['merge']) and after({'merge': False}) is None and after('off') is None


def test_it_is_kept_in_files(tmp_path):
    config = small_config(tmp_path, after=[{'merge': {'dtype': 'float32'}}, 'gguf'])
    assert load_config(save_config(config, tmp_path/'a.yml')).after == config.after


WRONG = {
    'Did you mean `merge`': ['mrege'], 'Did you mean `dtype`': {'merge': {'dtyp': 'float32'}},
    'Did you mean `type`': {'gguf': {'tipe': 'f16'}}, 'Did you mean `repo`': {'push': {'rep': 'me/a', 'repo': 'me/a'}},
    "must be 'float32'": {'merge': {'dtype': 'int8'}}, 'must be true or false': {'evaluate': 'perhaps'},
    'the name of a repository': ['push'], '`repo` is missing': {'push': {'merged': True}},
    '`gguf` is given twice': ['gguf', {'gguf': 'f16'}], 'without a name or a value': [], 'a list of steps': [3],
    'so there are no others': {'merge': {'dequantized': True}}, 'must be a mapping': 7,
}


@pytest.mark.parametrize('message', WRONG)
def test_wrong_keys(message, tmp_path):
    with pytest.raises(UserError, match=message): small_config(tmp_path, after=WRONG[message])


def test_the_line_of_the_file_is_named(tmp_path):
    save_config(small_config(tmp_path), tmp_path/'a.yml')
    text = (tmp_path/'a.yml').read_text().replace('after: null', 'after:\n  merge:\n    dtype: int4')
    (tmp_path/'a.yml').write_text(text)
    line = text.splitlines().index('    dtype: int4') + 1
    with pytest.raises(UserError, match=f'a.yml:{line}: `dtype` must be'): load_config(tmp_path/'a.yml')


def test_nothing_to_merge_after_all_weights(tmp_path):
    for after in (['merge'], [{'push': {'repo': 'me/model', 'merged': True}}]):
        with pytest.raises(UserError, match='nothing to merge'): small_config(tmp_path, adapter='full', after=after)


def test_not_in_a_sweep(tmp_path):
    with pytest.raises(UserError, match='after: a sweep'):
        sweep(small_config(tmp_path, after=['merge']), tmp_path/'sweep', lora_r=[1, 2])


# before training

BEFORE = {
    'GGUF: there is no type `q7`': [{'gguf': 'q7'}],
    'llama-quantize` of llama.cpp, which is not installed': [{'gguf': 'q4_k_m'}],
    r'model.bin: name a file that ends with .gguf': [{'gguf': {'file': 'model.bin'}}],
    'me is not a name on the Hub': [{'push': 'me'}],
    'there is no token for the Hub': [{'push': 'me/model'}],
    'data.jsonl is a file, and a merged model is a folder': [{'merge': {'folder': 'data.jsonl'}}],
}


@pytest.mark.parametrize('message', BEFORE)
def test_told_before_anything_is_loaded(message, tmp_path, monkeypatch):
    after = BEFORE[message]
    config = config_of(tmp_path, after=after)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PATH', '')
    (tmp_path/'model'/'model.safetensors').write_text('no weights')
    before = tree(tmp_path)
    with pytest.raises(UserError, match=message): check_run(config)
    with pytest.raises(UserError, match=message): finetune(config, say=None)
    assert tree(tmp_path) == before


def test_disk_and_ram(tmp_path):
    config, small = config_of(tmp_path, after=['merge', {'gguf': 'f16'}]), Machine('small', 10**8, 10**9, 10**5)
    with pytest.raises(UserError, match=f'write .* GB are free \\({tmp_path}'): check_after(config, run_bytes=10**18)
    assert 'after training: merge' in check_after(config, run_bytes=10**18, force=True)
    disk, ram = plan_after(config, machines=[small]).lacks
    assert 'write 0.2 MB and 0.1 MB are free (small)' in disk and 'of RAM and there are 0.1 GB (small)' in ram


def test_an_architecture_that_llama_cpp_files_are_not_written_for(tmp_path):
    save_tiny(tmp_path/'phi', PhiForCausalLM, PhiConfig, small_tokenizer(), **SIZES)
    config = small_config(tmp_path, base_model=str(tmp_path/'phi'), after=['gguf'])
    with pytest.raises(UserError, match='after: gguf: GGUF: `phi` is not written here'): finetune(config, say=None)


def test_all_that_is_wrong_is_one_message(tmp_path):
    config = config_of(tmp_path, after=[{'gguf': 'q7'}, {'push': 'me'}])
    with pytest.raises(UserError, match='(?s)after: gguf: .*after: push: '): check_run(config)


def test_the_plan(tmp_path):
    config = config_of(tmp_path, after=['merge', {'gguf': 'f16'}])
    assert 'after training: merge into' in str(check_run(config)) and not plan_after(config).problems
    assert plan_after(small_config(tmp_path)) is None
    without = plan_after(small_config(tmp_path, after=['gguf'])).needs['gguf']
    assert without.passing and not plan_after(config).needs['gguf'].passing # the merged model is kept
    pissa = plan_after(small_config(tmp_path, after=['merge'], peft_init_lora_weights='pissa')).needs['merge']
    assert pissa.kept == plan_after(config).needs['merge'].kept and pissa.ram != plan_after(config).needs['merge'].ram


# after training

@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    "A run with its steps, and what was said."
    folder, said = tmp_path_factory.mktemp('after'), []
    config = config_of(folder, after=[{'merge': {'dtype': 'float32'}}, {'gguf': 'f16'}])
    finetune(config, say=lambda x: said.append(str(x)))
    return folder, '\n'.join(said)


@pytest.fixture
def finished(trained, tmp_path):
    "The configuration of a copy of that run."
    shutil.copytree(trained[0]/'run', tmp_path/'run')
    return load_config(trained[0]/'run'/'config_completed.yml', output_dir=str(tmp_path/'run'))


def test_what_is_made(trained):
    run, said = trained[0]/'run', trained[1]
    assert (run/'merged'/'config.json').is_file() and (run/'gguf'/'model.gguf').is_file()
    assert (run/'gguf'/'Modelfile').read_text().startswith('FROM ./model.gguf')
    assert said.index('after training: merge into') < said.index('(0.1 MB on the disk') < said.index('written: ')
    assert [*steps(run)] == ['merge', 'gguf'] and all(step['made'] for step in steps(run).values())
    assert {p.name for p in trained[0].iterdir()} == {'model', 'run', 'data.jsonl'}


def again(config):
    said = []
    finetune(config, say=lambda x: said.append(str(x)))
    return [line.split()[2] for line in said if line.startswith('after training: ')]




def test_what_is_there_is_not_made_again(finished):
    run = Path(finished.output_dir)
    before = tree(run)
    assert again(finished) == [] and tree(run) == before
    (run/'gguf'/'model.gguf').unlink()
    assert again(finished) == ['gguf'] and tree(run).keys() == before.keys()
    assert again(load_config(finished, after={'merge': {'dtype': 'bfloat16'}})) == ['merge']
    assert steps(run)['merge']['settings']['dtype'] == 'bfloat16'


def test_a_new_step_of_a_finished_run(finished):
    run = Path(finished.output_dir)
    assert again(load_config(finished, after=['gguf'])) == ['gguf'] # another type than before
    assert steps(run)['gguf']['settings']['type'] == 'q8_0'


def test_a_process_that_was_killed(finished):
    run = Path(finished.output_dir)
    change_json(run/AFTER, gguf=steps(run)['gguf'] | {'made': False}) # as it is noted when a step begins
    assert make_after(finished, say=None) == ['gguf']
    (run/AFTER).unlink() # what is not noted as made here is not replaced
    with pytest.raises(UserError, match=r'(?s)merge: .*exists already.*gguf: .*exists already'): make_after(finished)
    assert make_after(finished, say=None, overwrite=True) == ['merge', 'gguf']


def test_a_model_that_was_trained_further(finished):
    change_json(Path(finished.output_dir)/'adapter'/'manifest.json', changed=1)
    assert make_after(finished, say=None) == ['merge', 'gguf']


def test_a_step_that_fails(finished, monkeypatch):
    run = Path(finished.output_dir)
    def cut_off(*args): raise ConnectionError('cut off')
    monkeypatch.setattr('huggingface_hub.get_token', lambda: 'hf_verysecrettoken')
    monkeypatch.setattr('llmft.export.push._upload', cut_off)
    monkeypatch.setattr('llmft.export.push.time.sleep', lambda seconds: None)
    config = load_config(finished, after=[{'push': 'me/model'}, {'gguf': 'q8_0'}])
    adapter = tree(run/'adapter')
    with pytest.raises(UserError) as error: finetune(config, say=None)
    assert 'The upload to me/model was cut off' in str(error.value) and 'verysecret' not in str(error.value)
    assert f'By itself: llmft push {run} me/model' in str(error.value)
    assert steps(run)['gguf']['made'] and not steps(run)['push']['made'] # the other step was made
    assert json.loads((run/'status.json').read_text())['state'] == 'finished' and tree(run/'adapter') == adapter
    monkeypatch.setattr('llmft.export.push._upload', lambda *args: None)
    assert again(config) == ['push'] and again(config) == []


def test_an_unforeseen_error_is_one_message(finished, monkeypatch, capsys):
    def full(*args, **kwargs): raise RuntimeError('no room\nat all')
    monkeypatch.setattr('llmft.export.after.export_gguf', full)
    file = save_config(load_config(finished, after={'gguf': 'f32'}), Path(finished.output_dir).parent/'a.yml')
    with pytest.raises(SystemExit) as stop: main(['train', str(file)])
    error = capsys.readouterr().err
    assert stop.value.code == 2 and 'gguf: RuntimeError: no room' in error and 'Traceback' not in error


def test_it_is_measured(tmp_path):
    run = finetune(config_of(tmp_path, after='evaluate'), say=None)
    assert json.loads((run.path/'evaluation.json').read_text()) and 'evaluation' in (run.path/'README.md').read_text()
    assert steps(run.path)['evaluate']


def test_folders_elsewhere(tmp_path):
    config = small_config(tmp_path, after=[{'merge': {'folder': str(tmp_path/'m')}}, {'gguf': {
        'file': str(tmp_path/'g'/'a.gguf'), 'type': 'q4_k_m'}}])
    small_run(tmp_path)
    tool = tmp_path/'bin'/'llama-quantize' # stands for the one of llama.cpp
    tool.parent.mkdir()
    tool.write_text('#!/bin/sh\necho $3 > "$2"\n')
    tool.chmod(0o755)
    path = os.environ['PATH']
    os.environ['PATH'] = f'{tool.parent}:{path}'
    try: made = make_after(config, say=None)
    finally: os.environ['PATH'] = path
    assert made == ['merge', 'gguf'] and (tmp_path/'g'/'a.gguf').read_text() == 'Q4_K_M\n'
    assert (tmp_path/'m'/'config.json').is_file() and (tmp_path/'g'/'Modelfile').is_file()
